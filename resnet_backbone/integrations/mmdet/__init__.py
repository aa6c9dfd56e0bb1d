"""Everything that changes mmengine and mmdet: registries, loaders, configs."""
