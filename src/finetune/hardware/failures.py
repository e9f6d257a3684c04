"""Errors caused by the hardware: out of memory or disk space."""

import errno

OUT_OF_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory", "cannot allocate memory")  # in lower case

NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the machine or its device: each allocator has its own message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


def find_machine_problem(error: Exception) -> str | None:
    """Describe what the machine lacks if that caused an error; None otherwise."""
    if is_out_of_memory(error):
        return "out of memory (use a smaller batch size or length, a smaller base, or nf4)"
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in NO_PLACE:
            return f"{error.filename or 'a file'}: {error.strerror} (free disk space, or make the location writable)"
        return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    text = str(error)
    if "PytorchStreamWriter" in text or "inline_container" in text:
        return "a checkpoint could not be written (free disk space: dvc gc -w)"
    return None
