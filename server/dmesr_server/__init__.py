"""The DMESR server: enriches items, keeps their vectors, and recommends, over gRPC."""
