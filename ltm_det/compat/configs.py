"""``ltm_det::NAME.py`` in configs and in mmengine's hub.

mmengine knows the packages of OpenMMLab alone, and wants a folder in such a name.
"""

from contextlib import suppress
from functools import wraps
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import config
from mmengine.hub import hub
from mmengine.registry import DefaultScope

PACKAGE = "ltm_det"


def find_our_configs() -> None:
    """Lets mmengine find what lies in this package's ``.mim/configs``, and build models of it."""
    for module in (config, hub):
        split = module._get_package_and_cfg_path
        if not hasattr(split, "__wrapped__"):
            module._get_package_and_cfg_path = with_ours(split)
            module.get_installed_path = with_our_folder(module.get_installed_path)
    path = config.Config._get_cfg_path
    if not hasattr(path, "__wrapped__"):
        config.Config._get_cfg_path = staticmethod(in_mmdets_scope(path))
    if not hasattr(hub.get_model, "__wrapped__"):
        import mmengine.hub

        hub.get_model = mmengine.hub.get_model = with_our_models(hub.get_model)


def with_ours(split: Any) -> Any:
    @wraps(split)
    def package_and_path(path: str) -> tuple[str, str]:
        package, _, name = path.partition("::")
        return (PACKAGE, name) if package == PACKAGE and name else split(path)

    return package_and_path


def with_our_folder(installed: Any) -> Any:
    """mmengine looks beside the package's metadata, where an editable installation is not."""

    @wraps(installed)
    def path(package: str) -> str:
        return str(files(PACKAGE)) if package == PACKAGE else installed(package)

    return path


def in_mmdets_scope(path: Any) -> Any:
    """What our configs name is looked up where it is registered.

    mmengine reads all metafiles of a package for each name, and then takes the file of that name.
    """

    @wraps(path)
    def path_and_scope(name: str, file: str) -> tuple[str, str | None]:
        package, _, inside = name.partition("::")
        config = inside_package(package, inside) if inside else None
        found, scope = path(name, file) if config is None else (str(config), package)
        return found, "mmdet" if scope == PACKAGE else scope

    return path_and_scope


def inside_package(package: str, name: str) -> Path | None:
    """A config that came with a package; None where it is not there."""
    with suppress(ImportError, ValueError):  # names that are no package's
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            config = Path(spec.origin).parent / ".mim/configs" / name
            return config if config.is_file() else None
    return None


def with_our_models(get_model: Any) -> Any:
    @wraps(get_model)
    def model(path: str, pretrained: bool = False, **options: Any) -> Any:
        if not path.startswith(f"{PACKAGE}::"):
            return get_model(path, pretrained, **options)
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        with DefaultScope.overwrite_default_scope("mmdet"):
            return MODELS.build(hub.get_config(path, pretrained).model, default_args=options)

    return model
