from setuptools import find_packages, setup

VERSION = {}
with open("mmjax/version.py") as f:
    exec(f.read(), VERSION)
with open("README.md") as f:
    README = f.read()

setup(
    name="mmjax",
    version=VERSION["__version__"],
    description="Multimodal generative models in JAX: contrastive, diffusion, tokens and vision-language, one trainer",
    long_description=README,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mmjax", "mmjax.*"]),
    package_data={"mmjax.data.scenes": ["tokenizer.json"], "mmjax.evals": ["prompts.jsonl"]},
    install_requires=[
        "absl-py>=2.0",
        "array-record>=0.8,<1",
        "chex>=0.1.90,<0.2",
        "diffrax>=0.7,<0.8",  # adaptive ODE solvers
        "equinox>=0.13,<0.14",  # diffrax stands on it
        "etils[epath]>=1.9",
        "flax>=0.12,<0.14",
        "fsspec>=2024.6",
        "ftfy>=6.1,<7",  # cleans text as OpenAI's CLIP does; pure Python
        "grain>=0.2.18,<0.3",
        "importlib-resources>=5",  # tensorflow-datasets imports it and counts on etils, which dropped it
        "jax>=0.10,<0.13",
        "jaxtyping>=0.3,<0.4",
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "ml-dtypes>=0.5",
        "numpy>=2.0,<3",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "Pillow>=10",
        "scikit-learn>=1.5,<2",
        "scipy>=1.13,<2",
        "sentencepiece>=0.2,<0.3",
        "tensorflow-datasets>=4.9.8,<5",
        "tokenizers>=0.21,<1",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "test": [
            "beartype>=0.19",
            "hypothesis>=6",
            "pyahocorasick>=2.1,<3",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.5",
            "tensorboardX>=2.6.2,<3",
        ],
        "parity": ["torch==2.13.0", "transformers>=5", "diffusers", "open_clip_torch", "safetensors>=0.4"],
        "curation": ["pyahocorasick>=2.1,<3"],  # mmjax data curate
        "gcs": ["gcsfs>=2024.6"],  # gs://
        "s3": ["s3fs>=2024.6"],  # s3://
        "tensorboard": ["tensorboardX>=2.6.2,<3"],
        "gpu": ["jax[cuda12]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
    },
    entry_points={"console_scripts": ["mmjax=mmjax.cli.main:main"]},
)
