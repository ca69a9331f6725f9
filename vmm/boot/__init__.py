"""Boot: images, what goes into RAM, and where each vCPU starts."""
