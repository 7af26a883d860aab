"""How good the images of a decoder are: distances between sets of images, each with an interval, and a verdict."""
