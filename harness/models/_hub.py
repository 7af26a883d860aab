"""Files of a Hugging Face hub by their address: hf://OWNER/NAME/FILE, at a revision hf://OWNER/NAME@REVISION/FILE.

Promise: a file is downloaded once and kept in the hub's own cache; what is there is used unasked, so that
it works offline and is the same file every time. The library is wanted only where an address is given.
"""

from contextlib import suppress
from pathlib import Path, PurePosixPath

from harness.errors import InputError, check_installed, shortened, text_of
from harness.files import HUB
from harness.models._weight_files import MOST_NAMED, SUFFIXES, shards_in

FORM = f"{HUB}OWNER/NAME/FILE"
MOST_REASON = 150  # characters of why the hub refuses
INDEX = ".index.json"
# What the library refuses by, the first that an error is; what the hub's answer means, and what to do.
REFUSALS = (
    ("GatedRepoError", "is for those whom its owners let in", "ask for access on its page, then hf auth login"),
    ("RevisionNotFoundError", "has no revision {revision}", "see the commits on its page"),
    ("RepositoryNotFoundError", "is no repository of the hub, or a private one", "see its name, or hf auth login"),
    ("LocalEntryNotFoundError", "is not in the cache, and the hub cannot be reached",
     "go online once, or pass --{name} FILE"),
    ("EntryNotFoundError", "has no file {file}", "see the files on its page"),
    ("Exception", "cannot be fetched ({reason})", "download it by hand, and pass --{name} FILE"),
)  # fmt: skip


def fetched(place: str, name: str) -> Path:
    """Return where the file of an address lies here, with its shards; a path, as it is. Raises `InputError`."""
    if not place.startswith(HUB):
        return Path(place)
    owner, _, rest = place.removeprefix(HUB).partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not owner or not repository:
        raise InputError(name, place, f"must read {FORM}", f"pass --{name} {HUB}FoundationVision/var/var_d16.pth")
    check_installed("huggingface_hub", "hub", name, place, "is fetched by huggingface_hub")
    hub = _Repository(f"{owner}/{repository}", revision or None, name, place)
    path = hub.get(file or hub.only_file())
    if path.name.endswith(INDEX):
        folder = str(PurePosixPath(file).parent)
        for shard in shards_in(path, name):
            hub.get(shard if folder == "." else f"{folder}/{shard}")
    return path


def revision_of(path: Path) -> str:
    """Return the commit of a file in the hub's cache; empty for any other."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


class _Repository:
    """One repository of a hub, for one network."""

    def __init__(self, repository: str, revision: str | None, name: str, place: str) -> None:
        self.repository, self.revision, self.name, self.place = repository, revision, name, place

    def get(self, file: str) -> Path:
        """Return where a file lies, downloaded if need be. Raises `InputError`."""
        from huggingface_hub import hf_hub_download  # noqa: PLC0415  # an extra
        from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

        try:
            with suppress(LocalEntryNotFoundError):  # what is there is not asked for again, and does not change
                return Path(hf_hub_download(self.repository, file, revision=self.revision, local_files_only=True))
            return Path(hf_hub_download(self.repository, file, revision=self.revision))
        except Exception as error:  # of the library, of HTTP, of the disk
            raise self._refused(error, file) from None

    def only_file(self) -> str:
        """Return the one file of weights, or their index. Raises `InputError` where there are several or none."""
        from huggingface_hub import HfApi  # noqa: PLC0415  # an extra

        try:
            files = HfApi().list_repo_files(self.repository, revision=self.revision)
        except Exception as error:
            raise self._refused(error, "") from None
        indices = [each for each in files if each.endswith(INDEX)]
        weights = sorted(each for each in files if each.endswith(SUFFIXES))
        if len(indices) == 1 or len(weights) == 1:
            return str((indices or weights)[0])
        rule = f"names no file, and there is {', '.join(weights[:MOST_NAMED])}" if weights else "has no file of weights"
        remedy = f"pass --{self.name} {self.place.rstrip('/')}/{weights[0] if weights else 'FILE'}"
        raise InputError(self.name, self.place, rule, remedy)

    def _refused(self, error: Exception, file: str) -> InputError:
        kinds = {each.__name__ for each in type(error).__mro__}
        rule, remedy = next(words for kind, *words in REFUSALS if kind in kinds)
        reason = shortened(text_of(error), MOST_REASON)
        rule = rule.format(revision=self.revision, file=file, reason=reason)
        return InputError(self.name, self.place, rule, remedy.format(name=self.name))
