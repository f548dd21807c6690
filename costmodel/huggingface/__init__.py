"""Model architectures from Hugging Face config.json files and from the catalogue that comes with Whatif."""

from costmodel.huggingface.catalog import catalog_config, catalog_model, catalog_names
from costmodel.huggingface.families import FAMILIES, from_config, from_file
from costmodel.huggingface.fields import ConfigError

__all__ = [
    "FAMILIES", "ConfigError", "catalog_config", "catalog_model", "catalog_names", "from_config", "from_file",
]
