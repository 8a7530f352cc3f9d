"""WordPiece as BERT uses it, on Hugging Face's `tokenizers` library: train, load, save, encode.

Text → cleaned, lower-cased, accents stripped → split at spaces, punctuation and around CJK
characters → each word cut greedily into the longest pieces of the vocabulary, all but the first
marked with "##":

    "Unaffable!"  →  un ##aff ##able !

So a vocabulary of a few thousand pieces can write every word, and common words are one token. Five
entries stand for no text: [PAD] fills up a batch, [UNK] is a word with an unknown character, [CLS]
opens a sequence, [SEP] ends each of its texts, and [MASK] hides a token.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import atomic, reading, write_json
from mini_undivided.support.terminal import progress
from mini_undivided.support.tokenizer_files import (
    AS_IT_IS,
    SPECIAL_TOKENS,
    find_vocabulary,
    read_settings,
    read_vocabulary,
)

SPECIAL = tuple(SPECIAL_TOKENS.values())  # [PAD], [UNK], [CLS], [SEP], [MASK]


def wordpiece(word, vocabulary):
    """Cut a word greedily into pieces of a vocabulary, the longest first → list of pieces.

    The library does this in Rust (but gives up beyond 100 characters); here it is to be read.
    """
    pieces, start = [], 0
    while start < len(word):
        mark, end = ("##" if start else ""), len(word)
        while mark + word[start:end] not in vocabulary:
            end -= 1
            if end == start:  # not even a single character is known: the whole word is unknown
                return ["[UNK]"]
        pieces.append(mark + word[start:end])
        start = end
    return pieces


def assemble(model, cased=False, strip_accents=None, chinese=None):
    """Put BERT's normalisation and pre-tokenisation before a WordPiece model → Tokenizer.

    By default, as in BERT, accents are stripped where capital letters are, and each CJK character
    is a word.
    """
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=not cased, strip_accents=strip_accents, handle_chinese_chars=chinese is not False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def check_special(tokenizer, source):
    """Raise UserError if the vocabulary lacks a special token."""
    missing = [token for token in SPECIAL if tokenizer.token_to_id(token) is None]
    if missing:
        needed = ", ".join(SPECIAL)
        raise UserError(f"the vocabulary of {source} has no {missing[0]}; BERT needs {needed}")


def finish(tokenizer, source):
    """Register the special tokens and [CLS] A [SEP] B [SEP]; UserError if one is missing."""
    check_special(tokenizer, source)
    ids = sorted(tokenizer.get_vocab().values())
    if ids != list(range(len(ids))) or len(ids) == len(SPECIAL):
        raise UserError(f"the vocabulary of {source} has gaps in its numbers, or no words at all")
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_special_tokens([token for token in SPECIAL if token not in known])
    cls, sep = ((token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return tokenizer


def train_tokenizer(documents, vocab_size, cased=False):
    """Train a WordPiece vocabulary of `vocab_size` entries on strings → Tokenizer.

    Training starts from single characters, of which the 1,000 commonest are kept in any case, and
    joins, again and again, the pair of pieces that is most frequent. Entries are fewer if there is
    nothing left to join, and more if the characters alone are more. The same documents give the
    same vocabulary each time. They are held in memory.
    """
    documents = list(documents)
    tokenizer = assemble(models.WordPiece(unk_token="[UNK]"), cased)
    # The library numbers the characters in the order of a hash table, which also decides between
    # pairs that are equally frequent. With them as its first entries, nothing is left to chance.
    first = [*SPECIAL, *alphabet(documents, tokenizer)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, min_frequency=2, limit_alphabet=0,
                                        special_tokens=first, show_progress=False)
    bar = progress(documents, desc="vocabulary", unit=" documents")
    # In a thread: the library does not listen to Ctrl-C.
    ThreadPoolExecutor(1).submit(tokenizer.train_from_iterator, bar, trainer).result()
    return finish(assemble(word_pieces(tokenizer.get_vocab()), cased), "the trained tokenizer")


def alphabet(documents, tokenizer, limit=1000):
    """The most frequent characters as entries, in order: as a word's first piece, and with "##"."""
    counts, letters = Counter(), Counter()
    for text in documents:
        counts.update(text)
    for char, count in counts.items():
        for letter in tokenizer.normalizer.normalize_str(char).strip():
            letters[letter] += count
    common = sorted(sorted(letters), key=letters.get, reverse=True)[:limit]
    split, normalise = tokenizer.pre_tokenizer.pre_tokenize_str, tokenizer.normalizer.normalize_str
    inside = [char for char in common if len(split(normalise("a" + char))) == 1]  # no full stops
    return [*sorted(common), *("##" + char for char in sorted(inside))]


def word_pieces(vocabulary):
    """A WordPiece model; like BERT's, it gives up on words of more than 100 characters."""
    return models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)


def load_tokenizer(path, cased=False):
    """Open a tokenizer: a vocab.txt, a tokenizer.json, or a folder (or hub id) with one of them.

    Its ids are those of `transformers`' AutoTokenizer, by all settings in the files beside it, or
    UserError names what cannot be honoured. `cased` is for a vocab.txt without "do_lower_case".
    """
    path = find_vocabulary(path)
    if path.suffix == ".json" and cased:
        raise UserError(f"--cased is for a vocab.txt: {path} says itself what it does")
    as_it_is, settings, tokens = read_settings(path)
    with reading(path):
        if as_it_is:
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_padding()
            tokenizer.no_truncation()
        else:
            lower, *others = (settings.get(name) for name in (
                "do_lower_case", "strip_accents", "tokenize_chinese_chars"))
            cased = cased if lower is None else not lower
            tokenizer = assemble(word_pieces(read_vocabulary(path)), cased, *others)
        check_special(tokenizer, path)
        tokenizer.add_tokens([AddedToken(**token) for token in tokens])
        bare = not settings and tokenizer.post_processor is None  # it gets BERT's
        given = form(tokenizer) if as_it_is and not bare else None
        finish(tokenizer, path)
        if given not in (None, form(tokenizer)):
            raise UserError(f"{path}: its post_processor does not put [CLS] and [SEP] as BERT does")
    return tokenizer


def form(tokenizer):
    """The ids and segment ids of a text and of a pair, by which forms of sequences are compared."""
    encodings = tokenizer.encode("a word, a \u2603"), tokenizer.encode("a word", "a \u2603")
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


def save_tokenizer(tokenizer, directory):
    """Write tokenizer.json, and a tokenizer_config.json that has AutoTokenizer take it as it is."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    with atomic(Path(directory) / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    settings = {"tokenizer_class": AS_IT_IS[0], **SPECIAL_TOKENS,
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    write_json(Path(directory) / "tokenizer_config.json", settings)


def encode(texts, tokenizer, max_length):
    """Token ids and segment ids of each text, (A,) or (A, B): [CLS] A [SEP], and then B [SEP].

    The segment ids are 0 up to the first [SEP] and 1 after it. What is longer than `max_length`
    tokens is cut, the longer of two strings first.
    """
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings = tokenizer.encode_batch([text if len(text) == 2 else text[0] for text in texts])
    tokenizer.no_truncation()
    return [(encoding.ids, encoding.type_ids) for encoding in encodings]


def is_cased(tokenizer):
    """Whether capital letters survive the tokenizer's normalisation."""
    return tokenizer.normalizer is None or tokenizer.normalizer.normalize_str("A") == "A"


def special_ids(tokenizer):
    """The ids of [PAD], [UNK], [CLS], [SEP], [MASK], in this order."""
    return [tokenizer.token_to_id(token) for token in SPECIAL]


def ordinary_ids(tokenizer):
    """All ids that are not special, as an array: what a random word may be."""
    return np.setdiff1d(np.arange(tokenizer.get_vocab_size()), special_ids(tokenizer))


def opens_word(tokenizer):
    """For each id whether a word begins with it: an array of bool, False for pieces with "##"."""
    opens = np.ones(tokenizer.get_vocab_size(), dtype=bool)
    opens[[i for piece, i in tokenizer.get_vocab().items() if piece.startswith("##")]] = False
    return opens


def same_tokenizer(a, b):
    """Whether two tokenizers turn every text into the same ids."""
    return a.to_str() == b.to_str()


def check_fits(tokenizer, vocab_size, source):
    """Raise UserError if the tokenizer has more entries than the model has embeddings."""
    entries = tokenizer.get_vocab_size()
    if entries > vocab_size:
        raise UserError(f"{source}: its tokenizer has {entries:,} entries but its model has "
                        f"{vocab_size:,} embeddings; the two do not belong together")
