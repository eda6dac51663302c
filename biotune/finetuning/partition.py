"""A network as blocks that can be frozen, and as a chain of layers that can be entered anywhere.

Libraries build networks as trees of modules, and say in ``forward`` how they are called. Here the
top of the tree is traced (torch.fx), down to the modules that lie wholly in one block; those stay
as they are. The traced graph is cut wherever a single tensor is handed on, which gives layers that
run one after the other, to the same result as the network.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn


@dataclass(frozen=True)
class Block:
    """A part of a network that is frozen or trained as one.

    Attributes:
        modules: the largest modules that lie wholly in the block.
        tensors: names of its parameters and buffers, as in ``network.state_dict()``.
        first_layer: index of the layer before which everything can be computed without it.
    """

    modules: tuple[nn.Module, ...]
    tensors: tuple[str, ...]
    first_layer: int


def divide(
    network: nn.Module, block_of: Mapping[str, str], names: Sequence[str]
) -> tuple[dict[str, Block], tuple[nn.Module, ...]]:
    """The blocks of a network, and its layers.

    A network that torch.fx cannot trace is one layer: its blocks can be frozen, but what frozen
    ones make of an image cannot be kept.

    Args:
        network: in evaluation mode.
        block_of: name of each parameter and buffer → name of its block.
        names: of the blocks in forward order, the classifier head last.

    Raises:
        ValueError: if a tensor is in no block, or a block has none.
    """
    _check(network, block_of, names)
    inside = _modules_in_one_block(network, block_of)
    order = {name: position for position, name in enumerate(names)}
    block_at = {path: order[block] for path, block in {**inside, **block_of}.items()}
    try:
        layers, first, beside = _layers(network, _traced(network, inside), block_at, names)
    except Exception:  # a model's forward may do anything, and tracing it may fail in any way
        layers, first, beside = (network,), dict.fromkeys(names, 0), {}
    blocks = {
        name: Block(
            modules=tuple(
                network.get_submodule(p)
                for p, block in {**inside, **beside}.items()
                if block == name
            ),
            tensors=tuple(tensor for tensor, block in block_of.items() if block == name),
            first_layer=first[name],
        )
        for name in names
    }
    return blocks, layers


def _check(network: nn.Module, block_of: Mapping[str, str], names: Sequence[str]) -> None:
    missing = [name for name in network.state_dict() if name not in block_of]
    if missing:
        raise ValueError(
            f"each tensor must be in one block; {len(missing)} are in none, {missing[0]!r} first"
        )
    empty = [name for name in names if name not in block_of.values()]
    if empty:
        raise ValueError(f"the block {empty[0]!r} has no tensors")


def _modules_in_one_block(network: nn.Module, block_of: Mapping[str, str]) -> dict[str, str]:
    """Path → block of the largest modules whose tensors all lie in one block."""
    largest: dict[str, str] = {}

    def visit(path: str, module: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        blocks = {block for name, block in block_of.items() if name.startswith(prefix)}
        is_called = not isinstance(module, nn.ModuleList | nn.ModuleDict)  # or only its children
        if path and len(blocks) == 1 and is_called:
            largest[path] = blocks.pop()
        elif blocks:
            for name, child in module.named_children():
                visit(prefix + name, child)

    visit("", network)
    return largest


class _Tracer(fx.Tracer):
    """Leaves modules that lie in one block as they are, with whatever control flow they have."""

    def __init__(self, inside: Mapping[str, str]) -> None:
        super().__init__()
        self._inside = inside

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._inside or super().is_leaf_module(
            m, module_qualified_name
        )


def _traced(network: nn.Module, inside: Mapping[str, str]) -> fx.Graph:
    """The graph of a network's top, of its first argument; the others have their defaults."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    others = {arg.name: arg.default for arg in parameters[1:] if arg.default is not arg.empty}
    graph = _Tracer(inside).trace(network, concrete_args=others)
    _, *rest = (node for node in graph.nodes if node.op == "placeholder")
    for placeholder in rest:
        _erase(graph, placeholder)
    return graph


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node with all that uses it: checks that an argument has its default."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


def _layers(
    network: nn.Module, graph: fx.Graph, block_at: Mapping[str, int], names: Sequence[str]
) -> tuple[tuple[nn.Module, ...], dict[str, int], dict[str, str]]:
    """The layers, the first of each block, and path → block of the modules without tensors."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    segments = _segments(network, nodes, block_at, len(names) - 1)
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    groups = _joined(nodes, segments, output)
    layers, first = [], dict.fromkeys(names, 0)
    previous: fx.Node = image
    seen: set[str] = set()
    for index, group in enumerate(groups):
        for node in group:
            block = _block_of_node(node, block_at)
            if block is None and not _is_dropout(network, node):
                continue
            name = names[segments[node][0] if block is None else block]
            if name not in seen:
                seen.add(name)
                first[name] = index
        layers.append(_as_module(network, previous, group))
        previous = group[-1]
    beside = {
        str(node.target): names[segments[node][0]]
        for node in nodes
        if node.op == "call_module" and _block_of_node(node, block_at) is None
    }
    return tuple(layers), first, beside


def _segments(
    network: nn.Module, nodes: Sequence[fx.Node], block_at: Mapping[str, int], head: int
) -> dict[fx.Node, tuple[int, bool]]:
    """For each node the block that it runs with, and whether that is reached.

    What holds no tensors runs with the block before it; what comes between the last of them and the
    head, such as pooling, is a segment of its own, up to the head's dropout.
    """
    segments: dict[fx.Node, tuple[int, bool]] = {}
    current = 0
    last_before_head = max(
        (
            i
            for i, node in enumerate(nodes)
            if (_block_of_node(node, block_at) or 0) < head
            and _block_of_node(node, block_at) is not None
        ),
        default=-1,
    )
    for index, node in enumerate(nodes):
        block = _block_of_node(node, block_at) if node.op == "call_module" else None
        current = max(current, block or 0)
        if index > last_before_head and _is_dropout(network, node):
            current = head
        if current < head and index > last_before_head:
            segments[node] = (head, False)
        else:
            segments[node] = (current, True)
    return segments


def _block_of_node(node: fx.Node, block_at: Mapping[str, int]) -> int | None:
    """The block of the tensors or the module that a node uses; None if it uses none of a block."""
    path = str(node.target) if node.op in ("call_module", "get_attr") else ""
    while path and path not in block_at:
        path = path.rpartition(".")[0]
    return block_at.get(path)


def _is_dropout(network: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        network.get_submodule(str(node.target)), nn.modules.dropout._DropoutNd
    )


def _joined(
    nodes: Sequence[fx.Node], segments: Mapping[fx.Node, tuple[int, bool]], output: fx.Node
) -> list[list[fx.Node]]:
    """The segments in order, joined where more than one tensor is handed from one to the next."""
    groups: list[list[fx.Node]] = []
    for index, node in enumerate(nodes):
        begins = index > 0 and segments[node] != segments[nodes[index - 1]]
        if not groups:
            groups.append([])
        elif begins:
            before = set(nodes[:index])
            after = [*nodes[index:], output]
            handed_on = {source for source in before if any(user in after for user in source.users)}
            if handed_on == {nodes[index - 1]}:
                groups.append([])
        groups[-1].append(node)
    return groups


def _as_module(network: nn.Module, before: fx.Node, nodes: Sequence[fx.Node]) -> nn.Module:
    """These nodes as a module of one input; it refers to the network's own modules."""
    if len(nodes) == 1 and nodes[0].op == "call_module" and nodes[0].args == (before,):
        return network.get_submodule(str(nodes[0].target))
    graph = fx.Graph()
    copies = {before: graph.placeholder("features")}
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda argument: copies[argument])
    graph.output(copies[nodes[-1]])
    layer = fx.GraphModule(network, graph)
    shared = set(network.modules())
    for module in layer.modules():
        if module not in shared:  # made by fx to hold parameters: nothing ever sets its mode
            module.training = False
    return layer
