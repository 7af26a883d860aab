"""What stands around the decoder: CUDA graphs and the observer. Without them it runs all the same."""
