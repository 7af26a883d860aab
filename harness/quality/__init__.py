"""How good the images of a decoder are: distances between sets of images, each with an interval, and a verdict."""

from harness.quality._distances import LEVEL, MOST_IMAGES, Estimate, check_torchmetrics
from harness.quality._draw import DRAFT, ELSEWHERE, Source, control_sources, portions
from harness.quality._features import load_inception, load_statistics
from harness.quality._gather import Conditions
from harness.quality._nats import nats_text
from harness.quality._rows import Quality, QualityRow, images_to_resolve, quality_verdict
from harness.quality._study import NO_MEANS, Means, Measured, Study, decoder_sources, digits_means, run_study
