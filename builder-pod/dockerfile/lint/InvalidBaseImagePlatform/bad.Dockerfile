FROM other-platform
