"""What the service tells of itself: metrics. Whatever is not switched on costs nothing and loads no package."""
