import argparse
import io
import pickle
from collections import OrderedDict

import pytest

from ghost_plugin.utils import restricted_pickle
from ghost_plugin.utils.restricted_pickle import Array, Box, Foreign


def load(value, protocol=2):
    return restricted_pickle.load(io.BytesIO(pickle.dumps(value, protocol)))


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_arrays_become_stand_ins(protocol):
    np = pytest.importorskip('numpy')
    found = load(OrderedDict(a=np.arange(6, dtype='<i4').reshape(2, 3)), protocol)['a']
    assert isinstance(found, Array)
    assert (found.shape, found.dtype.code) == ((2, 3), '<i4')
    assert bytes(found.data) == np.arange(6, dtype='<i4').tobytes()


def test_plain_values_stay_and_objects_of_scripts_are_empty():
    found = load({'epoch': 3, 'args': argparse.Namespace(lr=1.0)})
    assert found['epoch'] == 3
    assert type(found['args']) is Box
    assert not vars(found['args'])


@pytest.mark.parametrize('function', [print, eval, io.open])
def test_functions_are_refused_by_name(function):
    with pytest.raises(Foreign, match=function.__name__):
        load(function)
