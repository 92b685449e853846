from jaxcxr.inference import load_model as load_model

__version__: str
