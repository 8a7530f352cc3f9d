"""The files of a saved tokenizer, read as `transformers`' AutoTokenizer reads them."""

import re
from pathlib import Path

from mini_undivided.support.errors import UserError
from mini_undivided.support.files import check_form, read_json, reading
from mini_undivided.support.run_directory import resolve
from mini_undivided.support.text_files import check_utf8

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"}
# AutoTokenizer builds some classes anew, from the vocabulary and the settings; of others it takes
# tokenizer.json as it is.
REBUILT = ("BertTokenizer", "BertTokenizerFast")
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
BESIDE = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SETTINGS = {"do_lower_case?": bool, "strip_accents?": bool | None, "tokenize_chinese_chars?": bool}
OFF = dict.fromkeys(("split_special_tokens", "add_bos_token", "add_eos_token"), False)
TOKEN = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def find_vocabulary(path):
    """The tokenizer.json or vocab.txt of a folder or hub id, or the path itself if it is a file."""
    path = Path(path) if Path(path).exists() else resolve(path)
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).exists():
            return path / name
    raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor vocab.txt is there")


def read_vocabulary(path):
    """The entries of a vocab.txt or tokenizer.json, {piece: id}. UserError names a wrong line."""
    if path.suffix == ".json":
        vocabulary = read_json(path, {"model": {"vocab": dict}})["model"]["vocab"]
        check_form(list(vocabulary.values()), [int], path, "its vocabulary")
        return vocabulary
    with reading(path):
        text = path.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n")
    if text.startswith("\ufeff"):  # AutoTokenizer takes it for a part of the first word
        raise UserError(f"{path} begins with a byte order mark; remove it")
    vocabulary = {}
    for number, line in enumerate(text.split("\n"), 1):
        word = re.sub(r"[^\S\x1c-\x1f]+\Z", "", line)  # Unicode's spaces, as AutoTokenizer strips
        check_utf8(path, number, word)
        if word in vocabulary:
            raise UserError(f'{path}, line {number}: "{word}" stands there twice')
        vocabulary[word] = number - 1
    if text and not word:
        raise UserError(f"{path}, line {number}: the last line is blank; remove it")
    return vocabulary


def read_settings(path):
    """What stands in a vocabulary's file and beside it → as_it_is, settings, tokens.

    as_it_is: a tokenizer.json counts as it is, not its vocabulary alone. settings: those of
    tokenizer_config.json. tokens: what is added to the vocabulary, as arguments of AddedToken.
    Raises UserError, which names file and setting, for what cannot be honoured.
    """
    files = [path.parent / name for name in BESIDE]
    config, settings, named, added = (read_json(f) if f.exists() else {} for f in files)
    if "added_tokens_decoder" in settings:  # AutoTokenizer does not open the map then
        named = {}
    for name in named:
        if not name.endswith("_token") and name != "additional_special_tokens":
            raise UserError(f"{files[2]}: {name} is not a special token; "
                            "settings belong in tokenizer_config.json")
    for file, values in zip(files[1:3], (settings, named), strict=True):
        check_form(values, SETTINGS, file)
        for name, only in {**SPECIAL_TOKENS, **OFF}.items():
            value = values.get(name, only)
            value = value.get("content") if isinstance(value, dict) else value
            if value != only:
                raise UserError(f"{file}: {name} is {str(value)[:40]}; only {only} is supported")
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if kind not in (None, *REBUILT, *AS_IT_IS):
        raise UserError(f"{path.parent}: tokenizer_class is {str(kind)[:40]}; "
                        "only BERT's WordPiece is known")
    as_it_is = path.suffix == ".json" and (kind in AS_IT_IS or not (config or settings))
    with reading(path):
        content = read_json(path) if path.suffix == ".json" else {}
        return as_it_is, settings, added_tokens(content, settings, named, added)


def added_tokens(content, settings, named, added):
    """The tokens that the four files add to a vocabulary, in AutoTokenizer's order.

    content: of tokenizer.json, which like `named` and `added` counts only if tokenizer_config.json
    does not list them by id.
    """
    if "added_tokens_decoder" in settings:
        tokens = {int(i): token for i, token in settings["added_tokens_decoder"].items()}
    else:
        settings = settings | named
        tokens = {i: {"content": text} for text, i in added.items()}
        tokens |= {token["id"]: token for token in content.get("added_tokens", ())}
    first = dict.fromkeys(("bos_token", "eos_token"))
    named = {name: token for name, token in (first | settings).items() if name.endswith("_token")}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    extra = extra.values() if isinstance(extra, dict) else extra
    special = [token if isinstance(token, dict) else {"content": token}
               for token in (*named.values(), *extra) if token]
    names = {token["content"] for token in special}
    every = {}
    for token in (*(tokens[i] for i in sorted(tokens)), *special):
        known = {key: value for key, value in token.items() if key in TOKEN}
        known["special"] = known.get("special", False) or token["content"] in names
        known.setdefault("normalized", not known["special"])
        every.setdefault(token["content"], known)
    return list(every.values())
