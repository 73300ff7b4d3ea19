"""Text generation over the `Decoder` protocol: sampling, text, streaming, speculation. Needs no PyTorch."""
