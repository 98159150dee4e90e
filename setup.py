"""Installs vidlang; tool settings live in pyproject.toml, tested versions in requirements.txt."""

from setuptools import find_packages, setup

setup(
    name="vidlang",
    version="0.1.0",
    description="Video-language training in JAX: one encoder, four dials, any mesh",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["vidlang*", "configs*", "launch*"]),
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "av>=18,<20",
        "chex>=0.1.90",
        "etils[epath]>=1.12",
        "flax>=0.12,<0.13",
        "grain>=0.2.15,<0.3",
        "jax>=0.10,<0.12",
        "ml_collections>=1.1",
        "ml_dtypes>=0.5",
        "numpy>=2.1",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pyarrow>=18",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.21",
    ],
    extras_require={
        "test": [
            "apache-beam==2.77.0",
            "fsspec>=2025.3",
            "mypy==2.4.1",
            "onnx==1.23.2",
            "onnxruntime==1.32.0",
            "pytest==9.2.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.5",
            "tensorboard>=2.19",
            # The real models, which tests compare with; transformers 5 renames tensors of published files.
            "torch==2.13.0",
            "transformers==4.57.6",
        ],
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        # The TPU compiler, to compile for chips that are not here; another jax needs another one.
        "plan": ["libtpu==0.0.42.*"],
        "beam": ["apache-beam>=2.65"],
        "bench": ["decord==0.6.0"],
        # To write ONNX files, and to run them.
        "onnx": ["onnx>=1.18", "onnxruntime>=1.20"],
        "cocoeval": ["pycocoevalcap==1.2"],
        "remote": ["fsspec>=2025.3", "gcsfs>=2025.3", "s3fs>=2025.3"],
        "serve": ["starlette>=0.45", "uvicorn>=0.34"],
    },
)
