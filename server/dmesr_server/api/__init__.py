"""The gRPC face: one servicer for each noun. They validate, call what lies below, and translate; no logic."""
