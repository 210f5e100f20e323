"""Installs `plugin/` as the package vaemotionllm, and patches/, eval_tasks/ and configs/ below it."""

from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
ROOTS = {
    "vaemotionllm": "plugin",
    "vaemotionllm.patches": "patches",
    "vaemotionllm.eval_tasks": "eval_tasks",
    "vaemotionllm.configs": "configs",
}
STARTUP_PTH = "vaemotionllm_startup.pth"


def find_all_packages() -> list[str]:
    # The namespace finder also takes folders without an __init__.py, such as configs/deepspeed: data folders must
    # reach the wheel as well.
    packages = []
    for package, folder in ROOTS.items():
        packages.append(package)
        found = find_namespace_packages(str(HERE / folder), exclude=["__pycache__", "*.__pycache__"])
        packages.extend(f"{package}.{name}" for name in found)
    return packages


class build_py_with_startup(build_py):
    """Puts the start-up line beside the package, at the root of site-packages.

    Python reads `*.pth` files there when an interpreter starts. The line imports one small module that waits for
    lmms_eval and transformers, so that `lmms-eval tasks list` and `AutoModel.from_pretrained` know this package
    although nobody imported it. patches/startup.py says what it does.
    """

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            # An editable wheel is packed from install_lib; build_lib is thrown away.
            target = self.get_finalized_command("install").install_lib
        else:
            target = self.build_lib
        self.mkpath(target)
        self.copy_file(str(HERE / "patches" / STARTUP_PTH), str(Path(target) / STARTUP_PTH), preserve_mode=False)

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / STARTUP_PTH)]


setup(
    name="vaemotionllm",
    version="0.1.0",
    description="A plug-in for transformers and lmms-eval: vision-language models that hear, and understand emotion.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="The VAEmotionLLM maintainers",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "audio",
        "audio-visual",
        "emotion recognition",
        "lmms-eval",
        "multimodal",
        "transformers",
        "valence-arousal",
        "vision-language model",
    ],
    python_requires=">=3.11,<3.13",
    package_dir=ROOTS,
    packages=find_all_packages(),
    package_data={"": ["*.yaml", "*.json", "*.jinja", "*.sh", "hostfile", "_*_template_yaml", "py.typed"]},
    cmdclass={"build_py": build_py_with_startup},
    # Ranges say what the code needs; constraints.txt says what was tested.
    install_requires=[
        "torch>=2.11,<2.16",
        "torchvision>=0.26,<0.30",
        "torchaudio>=2.11,<2.12",
        "transformers>=5.23,<5.25",
        "lmms-eval>=0.7.3,<0.8",
        # Before 0.19.8 ZeRO-3 could read weights that were still being gathered (on CPU ranks garbage was saved), and
        # on a GPU find a released weight empty.
        "deepspeed>=0.19.8,<0.20",
        "peft>=0.21,<0.22",
        "accelerate>=1.15,<2",
        "datasets>=5.1,<6",
        "huggingface-hub>=2,<3",
        # lmms-eval 0.7.3 imports filelock._api, which 4.3 no longer has.
        # A lock on a file that its last owner has removed counts for nothing: seen in 4.2.12, not in 3.16.
        "filelock>=4.2.12,<4.3",
        "numpy>=2,<3",
        "packaging>=24.2",
        "pandas>=2.2.2",
        # The least that transformers renders chat templates with.
        "jinja2>=3.1.6",
        "pyarrow>=24",
        "pydantic>=2.10,<3",
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "av>=15,<16",
        "soundfile>=0.13,<0.15",
        "pillow>=11,<13",
        "PyYAML>=6.0.1",
        "safetensors>=0.8",
        "tensorboard>=2.18",
        "tqdm>=4.66.3",
    ],
    extras_require={
        "flash-attn": ["flash-attn>=2.7"],
        "demo": ["matplotlib>=3.9"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.8,<4",
            "psutil>=6",
            "setuptools>=77,<82",
            "ruff>=0.17,<0.18",
            "mypy>=2,<3",
            "types-PyYAML>=6",
            "pre-commit>=4",
        ],
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=1,<2"],
        # `make dist` and `make compat`.
        "dist": ["build>=1.2", "twine>=6.1", "uv>=0.9"],
    },
    entry_points={
        "console_scripts": ["vaemotionllm = vaemotionllm.cli.main:main"],
        "lmms_eval.models": ["vaemotionllm = vaemotionllm.evaluation.manifest:manifest"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
