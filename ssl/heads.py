"""The projector: the network between the encoder and the loss of pre-training."""

from torch import nn

from ssl.errors import UserError


def projector(width: int, spec: str, batch_norm: bool = True, bias: bool = False) -> nn.Sequential:
    """The network from representations (N, width) to embeddings (N, last of `spec`).

    Every layer but the last is followed by ReLU; with `batch_norm` (Barlow Twins) by batch norm and ReLU, and no layer
    has a bias unless `bias`; without it (SimCLR) the layers have biases. Raises `UserError` where `spec` is no list of
    widths, such as '8192-8192-8192'.
    """
    if not all(layer.isdecimal() and int(layer) > 0 for layer in spec.split("-")):
        raise UserError(f"projector: {spec!r} is not a list of widths; write for example 8192-8192-8192")
    widths = [width, *map(int, spec.split("-"))]
    layers: list[nn.Module] = []
    bias = bias or not batch_norm
    for fan_in, fan_out in zip(widths[:-2], widths[1:-1]):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(fan_out))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    return nn.Sequential(*layers)
