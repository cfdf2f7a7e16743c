"""What every pytest process does. The fixtures are in fixtures.py."""

import gc


def pytest_configure(config):
    """With -n, the process that hands out the tests runs none: it need not wait ten seconds for PyTorch.

    The garbage collector need not look at what is imported, neither meanwhile nor later.
    """
    if not config.getoption("numprocesses", None):
        gc.disable()
        config.pluginmanager.import_plugin("tests.fixtures")
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items):
    """The longest test comes first: begun last, it would leave all workers but one without work."""
    items.sort(key=lambda item: item.path.name != "test_tutorial.py")
