"""Let torch.hub load this repository's models without a clone, named as in `models.load`.

torch.hub.load("OWNER/REPOSITORY", "load", "hdge-jem-digits")
torch.hub.load("path/of/a/clone", "load", "hdge", source="local")
"""

dependencies = ["torch", "torchvision", "numpy", "safetensors"]

from models import load  # noqa: E402, F401
