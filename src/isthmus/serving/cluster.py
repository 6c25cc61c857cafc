"""The same server as several replicas, on one machine or many, with Ray Serve.

Each replica holds its own model and engine, and answers the same routes with the same checks; Ray's
proxy hands requests to whichever of two replicas drawn at random has fewer (power of two choices:
Mitzenmacher 2001). Prefixes and images are kept by each replica for itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from isthmus.errors import ConfigError, MissingExtraError
from isthmus.serving.settings import ServerSettings

NAME = "isthmus"
STARTING_S = 600.0
"""Seconds that the first replica may take to load its model."""


def serve_replicas(
    build: Callable[[], Any],
    settings: ServerSettings,
    *,
    replicas: int = 1,
    max_replicas: int | None = None,
    gpus: float = 0,
) -> None:
    """Starts replicas of an application, and returns once the first answers.

    Joins the Ray cluster that `RAY_ADDRESS` names; without it, one is started that only this
    machine can reach, and ends with this process.

    Args:
        build: Makes the application, in each replica's process; it is pickled, so that it should
            load the model and not hold it.
        settings: The application's own settings; host and port are the proxy's.
        replicas: How many at first and at least.
        max_replicas: How many at most: more are started while every one has more requests than
            it decodes together; None keeps their number.
        gpus: GPUs of each replica.

    Raises:
        ConfigError: If the numbers do not fit, or the port is 0.
        MissingExtraError: If Ray Serve is not installed.
    """
    most = replicas if max_replicas is None else max_replicas
    if not 1 <= replicas <= most:
        raise ConfigError(
            f"got {replicas} replicas and at most {most}: expected at least 1, and no fewer at most"
        )
    if settings.port == 0:
        raise ConfigError("replicas need a port of their own: expected --port 1 to 65535")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise MissingExtraError("serving replicas", "ray") from error
    options: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    if os.environ.get("RAY_ADDRESS"):
        options = {}
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False, **options)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    cores = float(ray.cluster_resources().get("CPU", 1))
    scaling: dict[str, Any] = {"num_replicas": replicas}
    if most > replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas,
                "max_replicas": most,
                "target_ongoing_requests": settings.max_batch,
            }
        }
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=settings.max_batch + settings.max_queue,
        graceful_shutdown_timeout_s=settings.grace,
        health_check_period_s=5,
        ray_actor_options={
            "num_cpus": min(1.0, cores / most) if cores < most else cores // most,
            "num_gpus": gpus,
        },
        **scaling,
    )(serve.ingress(lambda: build())(_Replica))  # Ray takes a function, no other callable
    try:
        serve.run(deployment.bind(), name=NAME, route_prefix="/", blocking=False)
        _wait(serve)
    except BaseException:
        stop_replicas()
        raise


def stop_replicas() -> None:
    """Ends all replicas when what runs is finished, and the cluster that was started for them."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


class _Replica:
    """What Ray starts; the application is the whole of it."""


def _wait(serve: Any) -> None:
    """Until a replica runs.

    Raises:
        ConfigError: If none does in time; Ray's logs say why.
    """
    ends = time.monotonic() + STARTING_S
    while time.monotonic() < ends:
        told = serve.status().applications[NAME]
        if told.status == "RUNNING":
            return
        if told.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ConfigError(f"no replica started: {told.message}")
        time.sleep(0.2)
    raise ConfigError(f"no replica started within {STARTING_S:.0f} s: see Ray's logs")
