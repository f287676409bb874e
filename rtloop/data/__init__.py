"""What a step may touch: buffers, exchanges, histograms."""
