"""A certificate of a run: its form, light; how one is `made` and `checked` are modules apart, which import PyTorch."""

from harness.certificate._form import check_extra, signed
from harness.certificate._read import is_certificate, read_certificate, read_key
