"""Applications in the agent's process: how they are found, told apart and made a `Service`."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, cast

from backstream._asgi import AsgiService
from backstream._asgi_websocket import AsgiWebService
from backstream._service import Service
from backstream._wsgi import WsgiApp, WsgiApplication
from backstream.config import AgentSettings
from backstream.errors import ConfigurationError
from backstream.functions import Function, asgi_application

__all__ = ["AsgiApp", "application_service", "interface_of", "load_app"]

AsgiApp: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]


def application_service(app: AsgiApp | WsgiApplication | Function | None, settings: AgentSettings) -> Service:
    """The service of `app`, or of the one that `settings.app` names. Raises ConfigurationError when there is none."""
    if app is None:
        app = load_app(settings.app or "", factory=settings.factory)
    interface = settings.interface if settings.interface != "auto" else interface_of(app)
    if interface == "wsgi":
        threaded = WsgiApp(cast(WsgiApplication, app), settings.wsgi_threads)
        return AsgiService(threaded, settings.root_path, "on", settings.request_timeout)
    if interface == "function":
        return function_service(cast(Function, app), settings)
    return AsgiWebService(app, settings)


def function_service(function: Function, settings: AgentSettings) -> Service:
    """The service of one function."""
    return AsgiService(asgi_application(function), settings.root_path, "off", settings.request_timeout)


def load_app(path: str, *, factory: bool = False) -> Any:
    """The application that "module:attribute" names, or that the factory of this name makes.

    Raises ConfigurationError when there is none.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise ConfigurationError(f'app "{path}" is not of the form module:attribute')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(f'app "{path}": there is no module {module_name}') from None
    target: Any = module
    for name in attribute.split("."):
        try:
            target = getattr(target, name)
        except AttributeError:
            raise ConfigurationError(f'app "{path}": the module {module_name} has no {attribute}') from None
    if factory:
        if not callable(target) or not _binds(target, 0):
            raise ConfigurationError(f'app "{path}" is no factory: it cannot be called without arguments')
        target = target()
    if not callable(target):
        raise ConfigurationError(f'app "{path}" is not callable, so it is no application')
    if _binds(target, 0) and not _binds(target, 2) and not _binds(target, 3):
        raise ConfigurationError(f'app "{path}" takes no arguments: is it a factory?')
    return target


def interface_of(app: Any) -> str:
    """What an application is taken for.

    `function` for a coroutine function of one argument, `wsgi` for what can be called with two and not with three, else
    `asgi3`.
    """
    while isinstance(app, functools.partial):
        if app.args or app.keywords:
            break
        app = app.func
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None)):  # noqa: B004
        return "function" if _binds(app, 1) and not _binds(app, 3) else "asgi3"
    return "wsgi" if _binds(app, 2) and not _binds(app, 3) else "asgi3"


def _binds(function: Any, count: int) -> bool:
    """Whether `function` can be called with `count` arguments, as far as that shows."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:
        pass  # an extension's function without a signature
    return True
