import pytest

from ghost_plugin import out_channels, out_strides


def test_published_channels_and_strides():
    assert out_channels('GhostNet', (0, 1, 2, 3, 4, 5)) == [16, 24, 40, 112, 160, 960]
    assert out_strides('ghost_plugin.GhostNet', (0, 1, 2, 3, 4, 5)) == [2, 4, 8, 16, 32, 32]


@pytest.mark.parametrize(
    'width, channels',
    [(0.5, [8, 12, 20, 56, 80]), (1.1, [16, 28, 44, 124, 176]), (1.3, [20, 32, 52, 144, 208])],
)
def test_channels_of_other_widths(width, channels):
    assert out_channels('GhostNet', range(5), width) == channels


@pytest.mark.parametrize(
    'call, error, said',
    [
        (lambda: out_channels('GhostNot'), ValueError, "did you mean 'GhostNet'"),
        (lambda: out_channels('GGhostRegNet', arch=32), ValueError, "did you mean '320' or '032'"),
        (lambda: out_channels('GhostNet', width=0), ValueError, 'got 0'),
        (lambda: out_channels('GhostNet', width=float('nan')), ValueError, 'nan'),
        (lambda: out_channels('GhostNet', width='big'), TypeError, 'big'),
        (lambda: out_channels('GhostNet', (6,)), ValueError, '0..5'),
        (lambda: out_channels('GhostNet', (-1,)), ValueError, '-1'),
        (lambda: out_channels('GhostNet', ()), ValueError, 'out_indices'),
        (lambda: out_channels('GhostNet', (2, 1)), ValueError, 'rise'),
        (lambda: out_channels('GhostNet', 'all'), TypeError, 'all'),
        (lambda: out_strides('GhostNet', output_stride=24), ValueError, '8, 16 or 32'),
    ],
)
def test_bad_values_are_named(call, error, said):
    with pytest.raises(error, match=said):
        call()
