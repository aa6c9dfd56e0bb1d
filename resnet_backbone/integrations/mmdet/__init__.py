"""Integration with mmengine and mmdet: registries, loaders, hooks and configs."""
