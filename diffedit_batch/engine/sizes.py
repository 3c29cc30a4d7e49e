"""The size at which a picture is edited. Needs no torch: plans ask for it too."""


def working_size(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) to edit at: about resolution**2 pixels, the same aspect ratio, both sides
    multiples.

    Rounding to multiples moves the ratio a little; resizing back to the original size moves it
    back.
    """
    scale = resolution / (width * height) ** 0.5
    short, long = sorted((width * scale, height * scale))
    short = max(1, round(short / multiple)) * multiple
    # A ratio beyond what one multiple allows would otherwise grow the area without limit.
    long = min(max(1, round(long / multiple)), max(1, 2 * resolution**2 // short // multiple))
    return (short, long * multiple) if width <= height else (long * multiple, short)
