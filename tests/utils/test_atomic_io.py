import pytest

from ghost_plugin.utils.atomic_io import atomic_write, atomic_write_all, check_writable


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / 'sub' / 'file.txt'
    with atomic_write(path) as partial:
        partial.write_text('one')
        assert not path.exists()
    assert path.read_text() == 'one'

    def fail():
        with atomic_write(path) as partial:
            partial.write_text('two')
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == 'one'
    assert [p.name for p in path.parent.iterdir()] == ['file.txt']


def test_companions_are_moved_together(tmp_path):
    with atomic_write_all(tmp_path / 'net.xml', '.bin') as path:
        path.write_text('xml')
        path.with_suffix('.bin').write_text('bin')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['net.bin', 'net.xml']


def test_places_where_no_file_can_be_written_are_refused(tmp_path):
    (tmp_path / 'net.bin').mkdir()
    (tmp_path / 'file').write_text('')
    with pytest.raises(IsADirectoryError, match=r'net\.bin'):
        check_writable(tmp_path / 'net.xml', '.bin')
    with pytest.raises(NotADirectoryError, match='is no folder'):
        check_writable(tmp_path / 'file' / 'net.xml')
    check_writable(tmp_path / 'new' / 'net.xml')
