"""Deferred imports: a stand-in until something looks inside, the real module from then on."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(code: str) -> str:
    head = "import sys\nfrom convkit.converters.torch_to_onnx.deferred import deferred\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_module_nobody_looks_into_is_not_loaded() -> None:
    code = """
    with deferred("colorsys"):
        import colorsys
    print("colorsys" in sys.modules, "rgb_to_hls" in vars(colorsys))
    """
    assert run(code) == "False False"


def test_looking_into_it_loads_the_real_one_then_and_later() -> None:
    code = """
    with deferred("colorsys"):
        import colorsys
        early = colorsys.rgb_to_hls
    import colorsys as real
    print(early is real.rgb_to_hls, colorsys.hls_to_rgb is real.hls_to_rgb)
    """
    assert run(code) == "True True"


def test_an_import_afterwards_is_a_real_one() -> None:
    code = """
    with deferred("colorsys"):
        import colorsys
    import colorsys as real
    print("rgb_to_hls" in vars(real))
    """
    assert run(code) == "True"


def test_submodules_of_a_deferred_package_can_be_imported() -> None:
    code = """
    with deferred("xml"):
        from xml.sax.saxutils import escape
        print(escape("<"))
    """
    assert run(code) == "&lt;"


def test_a_module_that_is_loaded_already_is_left_alone() -> None:
    code = """
    import colorsys
    with deferred("colorsys"):
        import colorsys as same
    print(same is colorsys and "colorsys" in sys.modules)
    """
    assert run(code) == "True"
