"""Model: any nn.Module, with names for its activations and ways to read and rewrite them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interneuron.core.errors import InputError
from interneuron.model.activations import Activations
from interneuron.model.edits import Edit, as_edits
from interneuron.model.engine import Anchor, Engine, Session, StopForward, check_buffers, refuse_compiled
from interneuron.model.family import Family
from interneuron.model.fingerprint import fingerprint
from interneuron.model.inputs import device_of, prepare
from interneuron.model.points import ReadSpec, Resolved
from interneuron.model.resolve import Resolver
from interneuron.model.sites import Site


class Run:
    """What `model.run` gives: `run.acts`, and `run.output`, computed on first use when the pass stopped early."""

    def __init__(self, acts: Activations, finish: Callable[[], Any], output: Any = None, done: bool = False) -> None:
        self.acts = acts
        self._finish, self._output, self._done = finish, output, done

    @property
    def output(self) -> Any:
        """The module's own output under the same edits. If the pass stopped early, a whole one is run now."""
        if not self._done:
            self._output, self._done = self._finish(), True
        return self._output


class Model:
    """A wrapped module. Made by `inn.load` or `inn.wrap`; the module is used as it is, never copied or subclassed.

        model = inn.load("gpt2")
        with model.read("layers.*.resid_post") as acts:
            model("The cat sat")
        acts["layers.3.resid_post"]                       # [B, T, D]

    module     the caller's nn.Module           tokenizer, processor   as given, or None
    organism   what is known of a shipped model organism, or None
    """

    def __init__(
        self, module: nn.Module, tokenizer: Any = None, processor: Any = None, family: Family | None = None
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(
                f"wrap() was given {type(module).__name__}: expected an nn.Module. Pass the module itself, or load one "
                "by name with inn.load."
            )
        self.module = module
        self.tokenizer = tokenizer
        self.processor = processor
        self.organism: Any = None
        refuse_compiled(module)
        self._resolver = Resolver(module, family, tokenizer)
        layout = self._resolver.layout
        anchors = [
            Anchor(name, self._resolver.modules[path], self._resolver.streams[name])
            for name, path in layout.streams.items()
        ]
        self._engine = Engine(module, anchors)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._counts: dict[str, int] = {}
        self._plans: dict[tuple[str, ...], list[Resolved]] = {}
        self._checked = False

    # -- facts ----------------------------------------------------------------------------------------------------

    @property
    def family(self) -> str | None:
        """Name of the architecture family that maps canonical names, or None."""
        return self._resolver.layout.family

    @property
    def device(self) -> torch.device:
        """Device of the first parameter (cpu when there is none)."""
        return device_of(self.module)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first floating-point parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def n_layers(self) -> int:
        """Number of layers of the (longest) stack. Raises InputError when no family maps this module."""
        return self._fact("n_layers", self._resolver.layout.n_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream, from the config. Raises InputError when the config has none."""
        config = getattr(self.module, "config", None)
        for holder in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
            for name in ("hidden_size", "d_model", "n_embd", "dim"):
                value = getattr(holder, name, None)
                if isinstance(value, int):
                    return value
        return self._fact("d_model", 0)

    def _fact(self, name: str, value: int) -> int:
        if not value:
            raise InputError(
                f"{type(self.module).__name__} does not say its {name}: look at model.sites('*:out') and read a shape."
            )
        return value

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Class, parameter count and a hash of the weights; artifacts and stores are keyed by it."""
        return fingerprint(self.module)

    def sites(self, pattern: str = "*") -> list[Site]:
        """Sites that match a glob with ranges (`layers.2-5.attn.*`); module paths with `*.mlp:out`.

        Raises SiteNotFound when nothing matches.
        """
        return self._resolver.sites(pattern, self._shapes)

    def site(self, name: str) -> Site:
        """One site, by any of its names: `model.site("blocks.3.hook_resid_post")`."""
        return self._resolver.sites(self._resolver.canonical(name), self._shapes)[0]

    # -- running --------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Run the module: text, list of texts, token tensor, image tensor, dict or tuple of arguments -> its output."""
        args, named = self.prepare(inputs)
        if self._engine.sessions:
            self._engine.fresh_pass()
        return self.module(*args, **named, **kwargs)

    def prepare(self, inputs: Any, padding_side: str = "right") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments that `inputs` becomes; raises InputError for what does not fit."""
        return prepare(self.module, self.tokenizer, self.processor, inputs, padding_side)

    def generate(self, inputs: Any, **kwargs: Any) -> Any:
        """`module.generate`, knowing prompt from generated tokens. Text in, list of texts out; tokens in, tokens out.

        Texts of a batch are padded on the left. All options of the module's own generate are passed on.
        Raises InputError when the module cannot generate.
        """
        from interneuron.model.generation import generate

        return generate(self, inputs, kwargs)

    # -- reading and editing --------------------------------------------------------------------------------------

    def resolve(self, sites: Iterable[str | Site]) -> list[Resolved]:
        """The places of names, globs and Sites on this model; the first canonical one runs the self-check."""
        wanted = (sites,) if isinstance(sites, (str, Site)) else tuple(sites)
        key = tuple(str(item) if isinstance(item, Site) else item for item in wanted)
        plan = self._plans.get(key)
        if plan is None:
            refuse_compiled(self.module)
            plan = self._resolver.resolve(wanted)
            self._plans[key] = plan
        if not self._checked and any(place.name in self._resolver.layout.entries for place in plan):
            self.check()
        return plan

    def read(
        self,
        *sites: str | Site | Sequence[str | Site],
        grad: bool = False,
        to: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Session:
        """Read sites while the context is open: `with model.read("layers.*.resid_post") as acts: model(x)`.

        grad   also keep the gradient of each site (`acts.grad[name]` after backward)
        to     None: the very tensors that flowed. A device: a copy there. A dict of buffers by name: copied into them,
               converted to their dtype, without new memory
        dtype  dtype of the copy
        Reading changes no bit of the output. Raises SiteNotFound, AxisError, and on exit SiteDidNotFire.
        """
        names: list[Any] = [n for item in sites for n in (item if isinstance(item, (list, tuple)) else [item])]
        places = self.resolve(names)
        check_buffers(to, [place.name for place in places])
        spec = ReadSpec(grad=grad, to=to, dtype=dtype, copy=to is not None or dtype is not None)
        return Session(self._engine, reads=places, spec=spec, canonical=self._resolver.canonical)

    def edit(self, *edits: Any) -> Session:
        """Apply edits while the context is open: `with model.edit(inn.Add(site, v)): model.generate("I feel")`."""
        return Session(self._engine, edits=self.bind(edits), canonical=self._resolver.canonical)

    def bind(self, edits: Any, rows: slice | None = None) -> list[tuple[Edit, Resolved, slice | None]]:
        """Edits paired with the places their sites name on this model; a glob gives one pair per site."""
        return [
            (edit, dataclasses.replace(place, selection=edit.selection), rows)
            for edit in as_edits(edits)
            for place in self.resolve([_site_of(edit)])
        ]

    def run(self, inputs: Any, read: Any = None, edit: Any = None, to: Any = None, **kwargs: Any) -> Run:
        """One pass with reads and edits. `run.acts` holds the sites, `run.output` the module's output.

        With sites to read, the pass stops after the last of them; asking for `run.output` then runs a whole one.
        `to` is a device or a dict of buffers for what is read, as in `read`.
        """
        bound = self.bind(edit) if edit is not None else []
        places = self.resolve(read) if read is not None else []

        def whole() -> Any:
            with Session(self._engine, edits=bound):
                return self(inputs, **kwargs)

        if not places:
            return Run(Activations({}, self._resolver.canonical), whole, whole(), done=True)
        check_buffers(to, [place.name for place in places])
        session = Session(
            self._engine,
            edits=bound,
            reads=places,
            spec=ReadSpec(to=to, copy=to is not None),
            canonical=self._resolver.canonical,
            stop_after=self._stop_after(places) if self._may_stop(inputs, kwargs) else None,
        )
        try:
            with session:
                output = self(inputs, **kwargs)
        except StopForward:
            self._note(session)
            return Run(session.acts, whole)
        self._note(session)
        return Run(session.acts, whole, output, done=True)

    def _may_stop(self, inputs: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a pass may be cut short and run again: not where others watch it, or where it leaves a trace."""
        named = {**inputs, **kwargs} if isinstance(inputs, Mapping) else kwargs
        cached = any(named.get(name) is not None for name in ("past_key_values", "cache_params"))
        return not (cached or self._engine.sessions or self.module.training or hasattr(self.module, "_hf_hook"))

    def _stop_after(self, places: Sequence[Resolved]) -> dict[str, int] | None:
        """How often each site fires in a pass; None while that is not known, so that no call is ever cut off."""
        left = {}
        for place in places:
            known = place.name in self._resolver.layout.entries and not self._resolver.layout.shared
            count = 1 if known else self._counts.get(place.name)
            if count is None or place.selection:
                return None
            left[place.name] = count
        return left

    def _note(self, session: Session) -> None:
        for name, box in session.boxes.items():
            if box.values:
                self._shapes[name] = tuple(box.values[-1].shape)
                if not session.stopped:
                    self._counts[name] = len(box.values)

    def sweep(self, inputs: Any, edits: Sequence[Any], metric: Callable[[Any], Any], batch_size: int = 32) -> Tensor:
        """One score per edit: many interventions batched into few forward passes. See `interneuron.model.sweep`."""
        from interneuron.model.sweep import sweep

        return sweep(self, inputs, edits, metric, batch_size)

    def check(self, inputs: Any = None) -> dict[str, float]:
        """Run the self-check of the canonical map now: the largest relative error of each identity.

        It runs by itself, on a few tokens, the first time a canonical site is used. Raises SelfCheckFailed.
        """
        from interneuron.model.check import check

        self._checked = True
        try:
            return check(self, inputs)
        except BaseException:
            self._checked = False
            raise

    def __repr__(self) -> str:
        return (
            f"Model({type(self.module).__name__}, family={self.family!r}, sites={len(self._resolver.layout.entries)})"
        )


def _site_of(edit: Edit) -> Any:
    site = edit.site
    if isinstance(site, Site) and site.selection:
        raise InputError(f"{edit.kind} was given a Site with a selection: put it on the edit, edit.at(...).")
    return site
