"""WordPiece as BERT uses it, on Hugging Face's `tokenizers` library: train, load, save, encode.

Text → cleaned, lower-cased, accents stripped → split at spaces, punctuation and around CJK characters → each word cut
greedily into the longest pieces of the vocabulary, all but the first marked with "##".
"""

from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tqdm import tqdm

from mini_undivided import runs
from mini_undivided.runtime import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def assemble(model, cased=False):
    """Put BERT's normalisation, pre-tokenisation and [CLS] A [SEP] B [SEP] around a WordPiece model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def finish(tokenizer, source):
    """Register the special tokens; raise UserError where the vocabulary lacks one."""
    lacking = [token for token in SPECIAL if tokenizer.token_to_id(token) is None]
    if lacking:
        raise UserError(f"the vocabulary of {source} has no {lacking[0]}; BERT needs {', '.join(SPECIAL)}")
    tokenizer.add_special_tokens(list(SPECIAL))
    cls, sep = (("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]")))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def train(documents, vocab_size, cased=False):
    """Train a WordPiece vocabulary of at most `vocab_size` entries on an iterable of strings → Tokenizer.

    The same documents give the same vocabulary each time. They are held in memory while it is trained.
    """
    documents = list(documents)
    tokenizer = assemble(models.WordPiece(unk_token="[UNK]"), cased)
    # The library numbers the characters in the order of a hash table, which also decides between pairs that are
    # equally frequent. Given them as its first entries, it has nothing left to chance.
    first = [*SPECIAL, *alphabet(documents, tokenizer)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, limit_alphabet=0, special_tokens=first, show_progress=False
    )
    bar = tqdm(documents, desc="vocabulary", unit=" documents", leave=False, mininterval=0.5)
    tokenizer.train_from_iterator(bar, trainer)
    return finish(assemble(word_pieces(tokenizer.get_vocab()), cased), "the trained tokenizer")


def alphabet(documents, tokenizer, limit=1000):
    """The commonest characters of a text as entries, in order: as they begin a word, and with "##" as they go on."""
    counts, letters = Counter(), Counter()
    for text in documents:
        counts.update(text)
    for char, count in counts.items():
        for letter in tokenizer.normalizer.normalize_str(char).strip():
            letters[letter] += count
    common = sorted(sorted(letters), key=letters.get, reverse=True)[:limit]
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    inside = [c for c in common if len(split(tokenizer.normalizer.normalize_str("a" + c))) == 1]  # no full stops
    return [*sorted(common), *("##" + c for c in sorted(inside))]


def word_pieces(vocabulary):
    """The WordPiece model over a vocabulary; like BERT's, it gives up on words of more than 100 characters."""
    return models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)


def load(path, cased=False):
    """Open a tokenizer: a vocab.txt, a tokenizer.json, or a folder (or a hub id) that holds one of them.

    `cased` is for a vocab.txt alone; where a tokenizer_config.json lies beside it, its "do_lower_case" decides.
    """
    path = Path(path) if Path(path).exists() else runs.resolve(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next((path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).exists()), None)
        if path is None:
            raise UserError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.txt is there")
    try:
        if path.suffix == ".json":
            return finish(Tokenizer.from_file(str(path)), path)
        words = [line.rstrip("\r\n") for line in path.open(encoding="utf-8", newline="\n")]
    except UserError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{path} is not a tokenizer that can be read ({error})") from None
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        cased = not runs.read_json(settings).get("do_lower_case", True)
    vocabulary = {word: i for i, word in enumerate(words)}
    return finish(assemble(word_pieces(vocabulary), cased), path)


def save(tokenizer, directory):
    """Write tokenizer.json and the tokenizer_config.json that lets `AutoTokenizer.from_pretrained` open it."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    with runs.atomic(Path(directory) / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": not is_cased(tokenizer), **names}
    runs.write_json(Path(directory) / "tokenizer_config.json", settings)


def is_cased(tokenizer):
    """Whether capital letters survive the tokenizer's normalisation."""
    return tokenizer.normalizer is None or tokenizer.normalizer.normalize_str("A") == "A"


def special_ids(tokenizer):
    """The ids of [PAD], [UNK], [CLS], [SEP], [MASK], in this order."""
    return [tokenizer.token_to_id(token) for token in SPECIAL]


def ordinary_ids(tokenizer):
    """All ids that are not special, as an array: what a random word may be."""
    return np.setdiff1d(np.arange(tokenizer.get_vocab_size()), special_ids(tokenizer))


def same(a, b):
    """Whether two tokenizers turn every text into the same ids."""
    return a.to_str() == b.to_str()


def check_fits(tokenizer, vocab_size, source):
    """Raise UserError where the tokenizer knows other ids than a model with `vocab_size` embeddings."""
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"{source}: its tokenizer has {tokenizer.get_vocab_size():,} entries but its model has {vocab_size:,} "
            "embeddings; the two do not belong together"
        )
