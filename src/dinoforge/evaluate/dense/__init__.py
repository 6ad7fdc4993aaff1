"""What evaluations of maps share: ground truth by the pixel, crops, features at any size, inference, training of a head."""
