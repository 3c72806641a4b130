"""The home of what is said where a tenant has as many of something as it may have."""

from waypost.domain.errors import LimitReached


def exceeded(quota: str, count_max: int) -> LimitReached:
    return LimitReached(f"quota {quota} exceeded, current limit: {count_max}")
