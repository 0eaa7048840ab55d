"""The server under other engines: Ray Serve and Triton Inference Server."""
