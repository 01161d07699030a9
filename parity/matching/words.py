"""What the name of a parameter says: its words, the roles that libraries name differently, and its numbers.

`encoder.layers_0.attention.query.kernel` and `block.0.SelfAttention.q.weight` share the roles `attn`, `q` and `weight`.
Roles of one group exclude each other: a query is no key, a bias no mean.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["GROUPS", "Number", "Words", "components", "numbers", "read", "squashed"]

SYNONYMS = {
    "q": "q query qproj qlin wq toq queryproj qeinsum linearq queries",
    "k": "k key kproj klin wk tok keyproj keinsum linearkey keys",
    "v": "v value vproj vlin wv tov valueproj veinsum linearvalue values",
    "o": "o oproj out outproj outlin toout attnveceinsum outproject",
    "qkv": "qkv cattn inproj querykeyvalue wqkv toqkv qkvproj qkveinsum",
    "gate": "gate gateproj wi0 gating",
    "up": "up upproj fc1 wi cfc linear1 lin1 densehto4h pwconv1 wi1 intermediate w3 fcin ff1",
    "down": "down downproj fc2 linear2 lin2 dense4htoh pwconv2 w2 fcout ff2",
    "attn": "attn attention selfattn selfattention multiheaddotproductattention mha multiheadattention",
    "cross": "crossattn crossattention encoderattn encdecattention encoderdecoderattention multiheadattn cross",
    "mlp": "mlp ffn ff feedforward mlpblock densereludense ffw feedforwardnetwork mlpcommon",
    "norm": "ln norm layernorm rmsnorm bn batchnorm groupnorm gn normalization rms instancenorm layernormalization",
    "embed": "wte embed embedtokens wordembeddings tokenembedding tokembeddings shared embedder tokenembedder "
    "embeddings "
    "inputembedding tokenembeddings embedin tokembed embedding",
    "pos": "wpe posembedding positionembeddings embedpositions posembed positionembedding positionalembedding posemb "
    "positionalembeddings posembeddings",
    "type": "tokentypeembeddings segmentembeddings typeembeddings tokentypeembedding",
    "patch": "patchembed patchembeddings patchembedding patchify convstem stem",
    "cls": "cls clstoken classtoken classembedding",
    "head": "lmhead head classifier score logitsdense unembed embedout logits fc",
    "conv": "conv conv1d conv2d conv3d",
    "linear": "linear dense lin fclayer",
    "encoder": "encoder enc",
    "decoder": "decoder dec",
    "shortcut": "downsample downsamplinglayer shortcut skip convproj normproj residualconv projshortcut",
    "depthwise": "dwconv depthwise dw depthwiseconv",
    "layerscale": "layerscale layerscaleparameter lambda1 ls1 ls2",
    "layers": "layers layer blocks block h encoderblock resblocks encoderlayer decoderblock decoderlayer stage stages",
    "n1": "ln1 norm1 inputlayernorm layernormbefore attentionnorm preattentionlayernorm preattentionnorm preattnnorm "
    "selfattnlayernorm attnnorm lnattn layernorm1 attnln preselfattentionlayernorm preattnln salayernorm",
    "n2": "ln2 norm2 postattentionlayernorm layernormafter ffnnorm mlpnorm premlplayernorm preffwnorm "
    "prefeedforwardlayernorm layernorm2 mlpln outputlayernorm premlpnorm lnmlp premlpln",
    "nx": "encoderattnlayernorm precrossattentionlayernorm crossattnln lncross normcross",
    "nf": "lnf normf finalnorm lnfinal encodernorm decodernorm postlayernorm lnpost",
    "weight": "kernel weight w scale gamma g embedding weights table inputembeddingtable",
    "bias": "bias b beta offset",
    "mean": "mean runningmean movingmean meanema",
    "var": "var runningvar movingvar movingvariance varema variance",
    "count": "count numbatchestracked counter",
}
"""Role -> whole parts of names, without `_` and capitals, that have it."""
LEAF_ONLY = frozenset(("weight", "bias", "mean", "var", "count"))
ROLES: dict[str, frozenset[str]] = defaultdict(frozenset)
for _role, _words in SYNONYMS.items():
    for _word in _words.split():
        ROLES[_word] |= {_role}
GROUPS = (
    frozenset(("q", "k", "v", "o", "up", "gate", "down", "qkv")),
    LEAF_ONLY,
    frozenset(("n1", "n2", "nx", "nf")),
    frozenset(("pos", "type", "head", "cls", "embed")),
    frozenset(("encoder", "decoder")),
    frozenset(("cross", "self")),
    frozenset(("attn", "mlp")),
    frozenset(("norm", "affine", "layerscale")),
    frozenset(("main", "shortcut")),
    frozenset(f"{x}{g}" for x in "ih" for g in "ifgorzn"),
    frozenset(("forward", "backward")),
)
"""Roles of which a parameter has one."""
IN_ATTENTION = {"cproj": "o", "wo": "o", "proj": "o", "output": "o", "dense": "o", "project": "o", "wout": "o"}
ELSEWHERE = {"cproj": "down", "wo": "down", "output": "down", "wout": "down"}
"""Parts of names with another role in attention than in a feed-forward layer."""
NUMBERED = re.compile(r"(.*?)_?(\d+)(_\D*)?")
"""A part of a name with a number: `layers_3`, `conv1`, `h0_attn`."""
AUTOMATIC = re.compile(r"[A-Z]\w*_\d+")
"""Names that Flax makes, whose numbers say nothing of a role."""


@dataclass(frozen=True)
class Words:
    """What a name says."""

    raw: frozenset[str]
    """Its words."""
    roles: frozenset[str]


@dataclass(frozen=True)
class Number:
    """A number in a name, among those at its place."""

    rank: int
    count: int
    inner: bool
    """Whether it numbers a single layer, such as `Dense_0`, and not a block of several."""


def components(name: str) -> tuple[str, ...]:
    """Return the parts of a name between dots and slashes, without Haiku's `~`."""
    parts = re.split(r"[./\[\]']+", name)
    return tuple(part for part in parts if part not in ("", "~"))


def squashed(part: str) -> str:
    """Return a part in lower case without `_`."""
    return part.replace("_", "").lower()


def _split(part: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", part)]


def read(parts: Sequence[str], in_block: bool) -> Words:
    """Return the words and roles of a parameter's name.

    Args:
        parts: of the name, from `components`.
        in_block: whether it is inside of a numbered block.
    """
    roles: set[str] = set()
    raw: set[str] = set()
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        raw |= set(_split(part))
        found = _roles(part, "attn" in roles or "cross" in roles)
        if squashed(part) == "output" and not in_block:  # of the whole model
            found = {"head"}
        if found & {"cross"}:
            found |= {"attn"}
        roles |= found - LEAF_ONLY if not last else _of_leaf(found)
    if "attn" in roles:
        roles |= {"self"} - {"self" for role in roles if role == "cross"}
    return Words(frozenset(raw - {"0"}), frozenset(_settled(roles, in_block)))


def _roles(part: str, in_attention: bool) -> set[str]:
    """Return the roles of one part of a name: of the whole, or of its words."""
    whole = squashed(part)
    if AUTOMATIC.fullmatch(part) or part not in ("wi_0", "wi_1"):
        base = re.sub(r"_?\d+$", "", part) if AUTOMATIC.fullmatch(part) or whole not in ROLES else part
        whole = squashed(base)
    found = {(IN_ATTENTION if in_attention else ELSEWHERE).get(whole, "")} - {""}
    found |= ROLES.get(whole, frozenset()) if not (in_attention and found) else set()
    if not found:
        words = [word for word in _split(part) if not word.isdigit()]
        pairs = {a + b for a, b in pairwise(words)}
        found = set().union(*(ROLES.get(word, frozenset()) for word in (*words, *pairs))) - {"layers", "linear"}
        found -= LEAF_ONLY if len(words) > 1 else set()
        found |= {"weight", "bias"} & {*words[:1], *words[-1:]}
    if re.fullmatch(r"[ih][ifgorzn]", part):
        found = {part}
    if any(word in part.lower() for word in ("backward", "reverse")):
        found.add("backward")
    return set(found)


def _of_leaf(found: set[str]) -> set[str]:
    """Return the roles of the last part: `embedding` there is a weight."""
    return found - {"embed"} if "weight" in found else found


def _settled(roles: set[str], in_block: bool) -> set[str]:
    """Return the roles, with those that depend on others."""
    norms = roles & {"n1", "n2", "nx", "nf"}
    if norms:
        roles = (roles | {"norm"}) - {"o", "down", "attn", "mlp", "cross", "self", "up"}
    if "norm" in roles and "nf" in roles and in_block:
        roles -= {"nf"}
    if "qkv" in roles:
        roles = (roles | {"attn"}) - {"q", "k", "v"}
    if roles & {"up", "gate", "down"} and "attn" not in roles:
        roles |= {"mlp"}
    if roles & {"pos", "type", "cls", "patch"}:
        roles -= {"embed"}
    return roles


def numbers(paths: Sequence[Sequence[str]]) -> list[list[Number]]:
    """Return the numbers in each name that have siblings, outermost first.

    Args:
        paths: parts of every name of a model.
    """
    families: dict[tuple[str, ...], set[int]] = defaultdict(set)
    deep: dict[tuple[str, ...], int] = defaultdict(int)
    found = []
    modules = {tuple(parts[: place + 1]) for parts in paths for place in range(len(parts))}
    for parts in paths:
        mine = []
        for place, part in enumerate(parts):
            match = NUMBERED.fullmatch(part)
            first = not match and (*parts[:place], f"{part}_1") in modules  # Haiku's `linear`, before `linear_1`
            if match or first:
                family = (*parts[:place], match[1] if match else part)
                value = int(match[2]) if match else 0
                families[family].add(value)
                deep[family] = max(deep[family], len(parts) - place + bool(match and match[3]))
                mine.append((family, value))
        found.append(mine)

    def number(family: tuple[str, ...], value: int) -> Number:
        values = sorted(families[family])
        return Number(values.index(value), len(values), deep[family] <= 2)

    return [[number(*each) for each in mine if len(families[each[0]]) > 1] for mine in found]
