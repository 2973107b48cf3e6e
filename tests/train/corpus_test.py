from keras_switch_train import corpus
from tests.models import tiny


def test_vocabulary_is_whole_or_absent(tmp_path, broken_rename):
    tokenizer = tiny.preprocessor().tokenizer
    path = tmp_path / "vocabulary.spm"
    path.write_bytes(b"old")
    with broken_rename():
        corpus.write_vocabulary(tokenizer, str(tmp_path))
    assert path.read_bytes() == b"old"
    corpus.write_vocabulary(tokenizer, str(tmp_path))
    assert path.read_bytes() == tiny.proto()
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.spm"]
