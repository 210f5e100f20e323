from setuptools import setup

setup(
    name="vaemotionllm",
    version="0.1.0",
    python_requires=">=3.11,<3.13",
    package_dir={
        "vaemotionllm": "plugin",
        "vaemotionllm.patches": "patches",
        "vaemotionllm.eval_tasks": "eval_tasks",
        "vaemotionllm.configs": "configs",
    },
    packages=[
        "vaemotionllm", "vaemotionllm.model", "vaemotionllm.data", "vaemotionllm.train", "vaemotionllm.benchmark",
        "vaemotionllm.evaluation", "vaemotionllm.nano", "vaemotionllm.cli", "vaemotionllm.patches", "vaemotionllm.eval_tasks",
    ],
    entry_points={
        "console_scripts": ["vaemotionllm = vaemotionllm.cli.main:main"],
    },
)
