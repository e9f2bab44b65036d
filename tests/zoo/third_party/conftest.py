"""Not for the tests of the project: these modules need packages that only `make test-zoo` installs."""

collect_ignore_glob = ["*.py"]
