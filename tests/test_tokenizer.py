"""The tokenizer against those of `transformers`: the fast one, and the plain one after Google's."""

import json
import unicodedata

import numpy as np
import pytest
import transformers
from helpers import names
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from mini_undivided.support.errors import UserError
from mini_undivided.tokenizer import (
    SPECIAL, check_fits, is_cased, load_tokenizer, same_tokenizer, save_tokenizer, special_ids,
    train_tokenizer, wordpiece)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    *SPECIAL, *LETTERS, *"ABCÅÉéß0123456789.,'!?-[]()中文字かな",
    *("##" + c for c in LETTERS + "éß0123456789中"),
    *"the The un ##aff ##able mask ##ing stop naive cafe café re ##sume".split()]

TEXTS = [
    "The unaffable mask, stop!",
    # accents: composed, combining, and odd capitals
    "naïve café CAFÉ cafe\u0301 résumé Åland straße İstanbul ﬁne",
    "中文 the文字 かな 한국어",
    "a😀b the 👩\u200d👩\u200d👧 ☕️",
    # control, invisible and odd spaces
    "a\x00b\ufffdc\x07 d\u00ade\u200bf\u200e\tg\r\nh\u2028i\u00a0j\u3000k",
    "a" * 100 + " " + "b" * 101 + " c",  # a word may have 100 characters
    "xx[MASK]yy [CLS] [SEP][PAD] [mask] [MASK [UNK]ed",
    "don't re-sume (1,234.5) $x^2 ~`|<> ‘quoted’ “so” — …",
    "",
    " \n\t ",
    "\u0301\u0301",
    "عربي עברית ไทย हिन्दी",
]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


def prose():
    """Some words to train on: stems and endings, in both cases, with an accent."""
    stems, endings = ("walk", "talk", "jump", "caf\u00e9", "Paint"), ("", "s", "ed", "ing", "er")
    return [f"the {stem}{a} and a {stem}{b}." for stem in stems for a in endings for b in endings]


# The same ids as transformers'


@pytest.mark.parametrize("cased", [False, True])
def test_ids_are_those_of_the_plain_tokenizer(vocabulary, cased):
    """For one vocabulary, the plain Python tokenizer gives the ids that ours gives."""
    ours = load_tokenizer(vocabulary, cased=cased)
    theirs = BertTokenizerLegacy(str(vocabulary), do_lower_case=not cased)
    for text in TEXTS:
        composed = unicodedata.normalize("NFC", text)  # as the plain one does first
        assert ours.encode(composed).ids == theirs(text)["input_ids"], text


# Other people's files


ENTITY = {"content": "[E1]", "lstrip": True, "rstrip": False, "normalized": False,
          "single_word": False, "special": True}
MASK = {**ENTITY, "content": "[MASK]"}
JSON = {"tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
BESIDE = {  # name: {file beside the vocabulary: its content}
    "nothing": {},
    "no settings": {"tokenizer_config.json": {"model_max_length": 7, "never_split": ["mask"],
                                              "do_basic_tokenize": False}},
    "cased": {"tokenizer_config.json": {"do_lower_case": False}},
    "accents kept": {"tokenizer_config.json": {"strip_accents": False}},
    "cased, no accents": {"tokenizer_config.json": {"do_lower_case": False, "strip_accents": True}},
    "CJK in one word": {"tokenizer_config.json": {"tokenize_chinese_chars": False}},
    "the class of version 4": {"tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast"}},
    "as it is": {"tokenizer_config.json": JSON},
    "a token of one's own": {"tokenizer_config.json": {"additional_special_tokens": ["[E1]"]}},
    "named so": {"tokenizer_config.json": {"extra_special_tokens": {"entity_token": "[E1]"},
                                           "other_token": "stop", "bos_token": "[E0]"}},
    "in the decoder": {"tokenizer_config.json": {
        "added_tokens_decoder": {"4": MASK, str(len(WORDS)): ENTITY, "7": {**ENTITY, "content": "c",
                                                                     "special": False}}}},
    "as it is, and more": {"tokenizer_config.json": {
        **JSON, "added_tokens_decoder": {"4": MASK, str(len(WORDS)): ENTITY}}},
    "in the map": {"special_tokens_map.json": {"mask_token": MASK, "cls_token": "[CLS]",
                                               "additional_special_tokens": ["[E1]", "un"]}},
    "no map beside a decoder": {
        "tokenizer_config.json": {"added_tokens_decoder": {"4": MASK}},
        "special_tokens_map.json": {"strip_accents": False, "unk_token": "the"}},
    "in a file": {"added_tokens.json": {"[E1]": len(WORDS), "stop": WORDS.index("stop")},
                  "tokenizer_config.json": {"mask_token": {**MASK, "__type": "AddedToken"}}}}


def written(folder, kind, beside):
    """A folder with a vocabulary and the files beside it, as somebody else might leave it."""
    transformers.BertConfig().save_pretrained(folder)
    words = {word: i for i, word in enumerate(WORDS)}
    if kind == "vocab.txt":
        (folder / kind).write_text("\n".join([*WORDS[:9], f"{WORDS[9]} \t", *WORDS[10:], ""]))
    else:  # AutoTokenizer does not read its normalizer, unless it takes the file as it is
        tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        tokenizer.add_special_tokens([*SPECIAL, "[E9]"])
        tokenizer.enable_truncation(9)
        tokenizer.enable_padding(length=41)
        tokenizer.save(str(folder / kind))
    for name, content in beside.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("kind", "beside"), [
    ("trained by us", "nothing"), ("trained by us, cased", "nothing"),
    ("tokenizer.json", "nothing at all"),
    *(("tokenizer.json", beside) for beside in BESIDE),
    *((kind, beside) for kind in ("vocab.txt", "saved by transformers") for beside in BESIDE
      if not beside.startswith("as it is"))])
def test_ids_are_those_of_auto_tokenizer_before_and_after_saving(tmp_path, beside, kind):
    """Whatever files stand beside a vocabulary, AutoTokenizer and ours give the same ids.

    So they do when ours has saved what it opened or trained, and they decode to the same text.
    Truncation and padding that are set in a tokenizer.json are left out.
    """
    folder = written(tmp_path, "vocab.txt" if " " in kind else kind, BESIDE.get(beside, {}))
    if beside == "nothing at all":
        (folder / "config.json").unlink()
    if " " in kind:
        folder = tmp_path / "other"
        if kind == "saved by transformers":
            transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(folder)
        else:
            save_tokenizer(train_tokenizer(prose(), 90, cased="cased" in kind), folder)
        transformers.BertConfig().save_pretrained(folder)
    ours = load_tokenizer(folder)
    save_tokenizer(ours, tmp_path / "saved")
    transformers.BertConfig().save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    reference, reopened = (
        transformers.AutoTokenizer.from_pretrained(each) for each in (folder, tmp_path / "saved"))
    special = [getattr(reopened, f"{name}_token") for name in "pad unk cls sep mask".split()]
    assert reopened.convert_tokens_to_ids(special) == special_ids(ours)
    for text in [*TEXTS, "the  [MASK] c  [E1]un[E9] stop[E0]unable", "Éa CAFÉ\u0301 中文"]:
        for texts in ((text,), (text, TEXTS[0])):
            expected = reference(*texts, return_token_type_ids=True)
            expected = expected["input_ids"], expected["token_type_ids"]
            for name, each in (("ours", ours), ("again", again)):
                encoding = each.encode(*texts)
                assert (encoding.ids, encoding.type_ids) == expected, (name, texts)
            saved = reopened(*texts)
            assert (saved["input_ids"], saved["token_type_ids"]) == expected, texts
            for special in (False, True):  # whether special tokens are left out
                theirs, *decoded = (each.decode(expected[0], skip_special_tokens=special)
                                    for each in (reference, reopened, ours, again))
                assert decoded == [theirs] * 3, texts


def test_ends_of_lines_are_stripped_as_by_auto_tokenizer(tmp_path):
    """Spaces at the end of a line of vocab.txt are no part of its entry; control characters are."""
    odd = [chr(i) for i in range(0x3001) if chr(i).isspace() and chr(i) != "\n"] + ["\0", "\u200b"]
    lines = [*WORDS, *(f"w{i}{end}" for i, end in enumerate(odd)), "x\ry", "z \x1f \u2028\r"]
    (tmp_path / "vocab.txt").write_bytes("\n".join([*lines, ""]).encode())
    transformers.BertConfig().save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert load_tokenizer(tmp_path).get_vocab() == theirs and "z \x1f" in theirs


@pytest.mark.parametrize(("beside", "sentence"), [
    ({"tokenizer_config.json": {"tokenizer_class": "BertJapaneseTokenizer"}}, "tokenizer_class is"),
    ({"tokenizer_config.json": {"tokenizer_class": 99 * "x"}}, "_class is x{40}; only"),
    ({"tokenizer_config.json": {"cls_token": 99 * "x"}}, "cls_token is x{40}; only"),
    ({"config.json": {"model_type": "bert", "tokenizer_class": "RobertaTokenizer"}},
     "tokenizer_class is Roberta"),
    ({"tokenizer_config.json": {"unk_token": "<unk>"}},
     r"tokenizer_config.json: unk_token is <unk>; only \[UNK\]"),
    ({"special_tokens_map.json": {"cls_token": {**MASK, "content": "<s>"}}},
     r"special_tokens_map.json: cls_token is <s>; only \[CLS\]"),
    *(({"special_tokens_map.json": {name: value}}, f"special_tokens_map.json: {name} is not a")
      for name, value in {"strip_accents": False, "tokenize_chinese_chars": False,
                          "vocab_file": "other.txt", "extra_special_tokens": ["the"]}.items()),
    ({"tokenizer_config.json": {"split_special_tokens": True}}, "split_special_tokens is True"),
    ({"tokenizer_config.json": {"add_bos_token": True}}, "add_bos_token is True"),
    ({"tokenizer_config.json": {"strip_accents": "no"}}, '"strip_accents" is no, but should be'),
    ({"tokenizer_config.json": {"added_tokens_decoder": {"4": {"lstrip": True}}}}, "content"),
    ({"tokenizer_config.json": []}, "should be an object")])
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, beside, sentence):
    """A setting with which ids would differ from AutoTokenizer's is an error that names it."""
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(written(tmp_path, "vocab.txt", beside))


def test_a_librarys_panic_is_one_line(vocabulary, monkeypatch):
    """What a library says in several lines, and at length, is a sentence of one line."""
    def panic(*_):
        raise BaseException("a\n\tpanic " + 999 * "x")

    monkeypatch.setattr("mini_undivided.tokenizer.check_special", panic)
    with pytest.raises(UserError, match="vocab.txt cannot be read: a panic x{192}$"):
        load_tokenizer(vocabulary)


@pytest.mark.parametrize("processor", [
    processors.BertProcessing(("[CLS]", 2), ("[SEP]", 3)),
    processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]",
                                  [("[CLS]", 2), ("[SEP]", 3)])])
def test_another_form_of_sequences_is_refused(tmp_path, processor):
    """A tokenizer.json that puts [CLS], [SEP] or the segments elsewhere than BERT is an error."""
    folder = written(tmp_path, "tokenizer.json", {"tokenizer_config.json": JSON})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processor
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match="post_processor"):
        load_tokenizer(folder)


def test_a_tokenizer_json_of_others_has_no_limits_of_its_own(tmp_path):
    """Without a post_processor it gets BERT's form; its truncation and padding count for nothing.

    Neither here nor in what is saved.
    """
    path = written(tmp_path, "tokenizer.json", {}) / "tokenizer.json"
    (tmp_path / "config.json").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    save_tokenizer(load_tokenizer(path), tmp_path / "saved")
    the = WORDS.index("the")
    for tokenizer in (load_tokenizer(path), Tokenizer.from_file(f"{tmp_path}/saved/tokenizer.json")):
        assert tokenizer.encode("the " * 52).ids == [2, *[the] * 52, 3]
        batch = tokenizer.encode_batch(["the", "the the"])
        assert [encoding.ids for encoding in batch] == [[2, the, 3], [2, the, the, 3]]


# Training


@pytest.mark.parametrize("cased", [False, True])
def test_training_gives_a_vocabulary_of_the_size_asked_for(cased):
    """Training gives as many entries as asked for, the special ones first.

    Known words need no [UNK], and come back, with no space before a full stop.
    """
    tokenizer = train_tokenizer(prose(), vocab_size=77, cased=cased)
    assert tokenizer.get_vocab_size() == 77
    assert special_ids(tokenizer) == [0, 1, 2, 3, 4]
    text = "the painter talks." if not cased else "the Painter talks."
    encoding = tokenizer.encode(text)
    assert 1 not in encoding.ids and tokenizer.decode(encoding.ids) == text
    assert len(tokenizer.encode("the").ids) == 3  # a frequent word is one entry
    assert is_cased(tokenizer) == cased
    assert any(word != word.lower() for word in set(tokenizer.get_vocab()) - set(SPECIAL)) == cased


def test_the_greedy_cut_is_the_librarys(greek):
    """The few lines that show how WordPiece cuts a word give the library's pieces of any word."""
    tokenizer, rng = greek[1], np.random.default_rng(7)
    vocabulary, letters = tokenizer.get_vocab(), [*"abdegilmnoprtuж"]
    words = {"".join(rng.choice(letters, size=rng.integers(1, 14))) for _ in range(400)}
    cuts = {word: wordpiece(word, vocabulary) for word in words | {*tokenizer.get_vocab()}}
    for word, pieces in cuts.items():
        assert pieces == [token.value for token in tokenizer.model.tokenize(word)], word
    assert {1, 2, 3} <= {len(pieces) for pieces in cuts.values()} and ["[UNK]"] in cuts.values()


def test_training_again_gives_the_same_tokenizer():
    """Nothing is left to chance, though nearly all pairs of this text are equally frequent."""
    one = train_tokenizer(prose(), 80)
    assert all(same_tokenizer(one, train_tokenizer(iter(prose()), 80)) for _ in range(5))
    assert not same_tokenizer(one, train_tokenizer(prose(), 79))


def test_the_alphabet_is_of_characters_that_can_stand_there():
    """Both forms of a letter are in the alphabet, whatever its place in the text.

    What always stands alone has no form for the inside of a word.
    """
    words = train_tokenizer(["q\u00e9 中.", "Zoo zoo\u200b"], vocab_size=1).get_vocab()
    assert set(words) == {*SPECIAL, *"qezo中.", *("##" + c for c in "qezo")}

def test_the_commonest_characters_are_kept():
    """Of more than a thousand characters a vocabulary keeps the most frequent."""
    characters = [chr(0x4E00 + i) for i in range(1049)]
    frequency = {char: 2 + (7 * i) % 1049 // 40 for i, char in enumerate(characters)}
    documents = [
        " ".join(char for char in characters if frequency[char] > number) for number in range(28)]
    tokenizer = train_tokenizer(documents, 1100)
    unknown = {c for c in characters if "[UNK]" in tokenizer.encode(c).tokens}
    assert 0 < len(unknown) < 100
    kept = set(characters) - unknown
    assert min(frequency[char] for char in kept) >= max(frequency[char] for char in unknown)
    assert max(frequency[char] for char in unknown) < 5 < max(frequency.values())


# Files


def test_saved_and_loaded_is_the_same(tmp_path):
    """A saved tokenizer opens as it was, from its folder or its tokenizer.json.

    No other file is left over.
    """
    tokenizer = train_tokenizer(prose(), 80)
    run = tmp_path / "runs" / "first"
    save_tokenizer(tokenizer, run)
    assert same_tokenizer(load_tokenizer(run), tokenizer)
    assert same_tokenizer(load_tokenizer(run / "tokenizer.json"), tokenizer)
    assert names(run) == ["tokenizer.json", "tokenizer_config.json"]


def test_the_lines_of_a_vocabulary(vocabulary, tmp_path):
    """CRLF, a missing last line end and spaces behind a word change nothing.

    A line separator within a word is no end of a line. A word that stands there twice, a blank line
    at the end and bytes that are not UTF-8 are errors that name the line.
    """
    other, lines = tmp_path / "other.txt", "\n".join(WORDS).encode()
    for same in (lines, lines.replace(b"\n", b"\r\n"), lines.replace(b"stop", b"stop \t")):
        other.write_bytes(same)
        assert same_tokenizer(load_tokenizer(other), load_tokenizer(vocabulary))
    other.write_bytes(lines + "\na\u2028b".encode())
    assert load_tokenizer(other).get_vocab_size() == len(WORDS) + 1
    for more, sentence in ((b"\nstop \n", '"stop" stands there twice'), (b"\n\n", "is blank"),
                           (b"\n \n", "is blank"), (b"\nr\xe9d\n", "is not UTF-8")):
        other.write_bytes(lines + more)
        with pytest.raises(UserError, match=sentence) as error:
            load_tokenizer(other)
        assert f"line {len(WORDS) + 1}" in str(error.value)
    other.write_bytes(b"\xef\xbb\xbf" + lines)
    with pytest.raises(UserError, match="other.txt begins with a byte order mark"):
        load_tokenizer(other)


def test_the_config_beside_a_vocabulary_decides_its_case(vocabulary):
    """What tokenizer_config.json says of case wins; if it says nothing, `cased` decides."""
    config = vocabulary.parent / "tokenizer_config.json"
    config.write_text(json.dumps({"model_max_length": 512}))
    assert is_cased(load_tokenizer(vocabulary, cased=True))
    config.write_text(json.dumps({"do_lower_case": True}))
    assert not is_cased(load_tokenizer(vocabulary, cased=True))


@pytest.mark.parametrize("lacking", SPECIAL)
def test_a_vocabulary_without_a_special_token_is_an_error(vocabulary, lacking):
    """A vocabulary without a special token is an error that names the token and the file.

    For a vocab.txt and for a tokenizer.json.
    """
    words = [word for word in WORDS if word != lacking]
    vocabulary.write_text("\n".join(words), encoding="utf-8")
    bare = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    bare.save(str(vocabulary.parent / "tokenizer.json"))
    for path in (vocabulary, vocabulary.parent / "tokenizer.json"):
        with pytest.raises(UserError) as error:
            load_tokenizer(path)
        assert str(path) in str(error.value) and f"no {lacking}" in str(error.value)


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("tokenizer.json", b"{}", "tokenizer.json"), ("tokenizer.json", b"", "tokenizer.json"),
    ("vocab.txt", b"\xff\xfe", "vocab.txt"), ("vocab.txt", b"", "vocab.txt"),
    ("nowhere.json", None, "nowhere"), ("", None, "holds no tokenizer")])
def test_what_cannot_be_opened_is_an_error(tmp_path, name, content, sentence):
    """A broken file, one that is not there, or a folder without a tokenizer is an error."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path / name)


def test_a_tokenizer_must_fit_the_model(vocabulary):
    """A tokenizer with more entries than the model has embeddings is an error.

    Fewer are allowed, as vocabularies are sometimes padded.
    """
    tokenizer = load_tokenizer(vocabulary)
    check_fits(tokenizer, len(WORDS), "run")
    check_fits(tokenizer, len(WORDS) + 1, "run")
    with pytest.raises(UserError, match="run: its tokenizer"):
        check_fits(tokenizer, len(WORDS) - 1, "run")

