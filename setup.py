"""Builds fastib._C, the CPU kernels. Everything declarative is in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

OLDEST_TORCH = "0x020b000000000000"  # 2.11: the stable ABI that the kernels are compiled against


def cpu_extension() -> Any:
    from torch.utils.cpp_extension import CppExtension

    sources = ["csrc/module.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
    return CppExtension(
        "fastib._C",
        sources,
        depends=sorted(map(str, [*Path("csrc/common").glob("*.h"), *Path("csrc/cpu").glob("*.h")])),
        py_limited_api=True,  # BuildExtension defines Py_LIMITED_API
        define_macros=[
            ("TORCH_TARGET_VERSION", OLDEST_TORCH),
            ("TORCH_STABLE_ONLY", None),
        ],
        extra_compile_args={
            "cxx": [
                "-O3",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-ffp-contract=off",
                "-fvisibility=hidden",
                "-Wno-psabi",
                "-Wno-unused-function",
                "-Wno-maybe-uninitialized",
            ]
        },
        extra_link_args=[] if sys.platform == "darwin" else ["-s"],
    )


def build_command() -> Any:
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension


setup(
    packages=[*find_packages(include=["fastib*"]), "fastib._triton"],
    package_dir={"fastib._triton": "csrc/triton"},
    ext_modules=[cpu_extension()],
    cmdclass={"build_ext": build_command()},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
