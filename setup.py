"""Where the wheel keeps the top-level folders jobs/ and conf/: the rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["neuronstats*"]), "neuronstats.jobs", "neuronstats.conf"],
    package_dir={"neuronstats.jobs": "jobs", "neuronstats.conf": "conf"},
)
