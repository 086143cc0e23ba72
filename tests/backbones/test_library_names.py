"""HorNet and Sequencer2D take the weights of the libraries that ship them, answer alike, and write the names back."""

import pytest
import torch
from toys import TOYS, build_toy

FAMILIES = [("hornet", "mmpretrain"), ("sequencer2d", "timm")]


@pytest.mark.parametrize(("family", "library"), FAMILIES)
def test_library_weights_give_the_library_s_answers(family, library):
    ours = build_toy(family, out_indices=(), with_embedding=True).double().eval()
    key_map = ours.formats()[library]
    theirs = key_map.network(TOYS[family], 5, 3).double()
    theirs.eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.1 * torch.randn_like(p)
    published = {key.removeprefix("backbone."): value for key, value in theirs.state_dict().items()}
    state, dropped = key_map.to_ours(published)
    head = torch.nn.Linear(ours.embed_channels, 5).double()
    head.load_state_dict({name: state.pop(f"head.{name}") for name in ("weight", "bias")})
    ours.load_state_dict(state)
    assert dropped == []
    names, _ = key_map.to_theirs({**ours.state_dict(), "head.weight": head.weight, "head.bias": head.bias})
    assert names.keys() == published.keys()
    images = torch.randn(2, 3, 75, 101).double()
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0
        torch.testing.assert_close(head(ours.embed(images)), expected, rtol=0, atol=1e-6)
