"""Reading: which letters columns say, the tokenizer's own word pieces, and the network."""

from __future__ import annotations

import random
import string

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F

from isthmus.errors import ConfigError
from isthmus.model.connectors.reading import ALPHABET, Pieces, Reader, as_text, likeliest

EVERY = {letter: number for number, letter in enumerate(f" {ALPHABET}")}


def said(columns: str) -> str:
    """What is read of columns that say these letters, a dot for none."""
    numbers = torch.tensor([[0 if c == "." else ALPHABET.index(c) + 1 for c in columns]])
    return as_text(likeliest(30.0 * F.one_hot(numbers, 1 + len(ALPHABET))))[0]


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ("..ca.t...", "cat"),
        ("b.ee.e7.", "bee7"),
        ("ccc..aat", "cat"),
        (".........", ""),
        ("abcdefghijk", "abcdefgh"),  # the longest word has eight letters
        ("aAa", "aAa"),
        (".x", "x"),
    ],
)
def test_a_run_of_one_letter_is_read_once(columns: str, word: str) -> None:
    assert said(columns) == word


@pytest.mark.parametrize(
    ("word", "sure", "read"),
    [
        ("sCRAP", 3.0, "SCRAP"),  # letters that are alike in two cases go with the others
        ("plUmp", 3.0, "plump"),
        ("SHaDE", 3.0, "SHADE"),
        ("8o88Oo", 2.0, "808800"),
        ("71I3", 3.0, "7113"),
        ("zSY44", 3.0, "ZSY44"),
        ("aBcD", 3.0, "aBcD"),  # too many would have to change
        ("sCRAP", 9.0, "sCRAP"),  # it is sure of the small s
        ("8o88", 20.0, "8o88"),
        ("Scrap", 3.0, "Scrap"),
        ("AB2", 3.0, "AB2"),
    ],
)
def test_letters_that_look_alike_go_with_those_beside_them(
    word: str, sure: float, read: str
) -> None:
    """`sure` is how much likelier, in nats, each letter is than its other case or its digit."""
    alike = {**{c: c.swapcase() for c in string.ascii_letters}, "I": "1"}
    logits = torch.zeros(1, 2 * len(word), 1 + len(ALPHABET))
    logits[0, 1::2, 0] = 30.0  # nothing between two letters
    for i, letter in enumerate(word):
        logits[0, 2 * i, ALPHABET.index(letter) + 1] = 30.0
        for other in {alike.get(letter, letter), "0" if letter in "oO" else letter} - {letter}:
            logits[0, 2 * i, ALPHABET.index(other) + 1] = 30.0 - sure
    assert as_text(likeliest(logits)) == [read]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte-pair tokenizer that splits digits, as SmolLM2's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    draw = random.Random(0)
    parts = ["an", "ban", "tree", "Tre", "ING", "ing", "do", "Q", "q", "ana", "na"]
    text = [" ".join("".join(draw.choices(parts, k=3)) for _ in range(9)) for _ in range(300)]
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def spelling(tokenizer: Tokenizer) -> Pieces:
    pieces = Pieces(tokenizer.get_vocab_size())
    pieces.set({text.replace("Ġ", " "): token for text, token in tokenizer.get_vocab().items()})
    return pieces


def test_words_are_split_as_the_tokenizer_splits_them(tokenizer: Tokenizer) -> None:
    pieces = spelling(tokenizer)
    draw = random.Random(1)
    words = ["banana", "BANANA", "treeing", "TreING", "28", "AB23", "a", "Qq"]
    words += ["".join(draw.choices(ALPHABET, k=draw.randint(1, 8))) for _ in range(200)]
    words += ["".join(draw.choices(["an", "ba", "tr", "ee", "n", "I"], k=4)) for _ in range(200)]
    for word in words:
        assert pieces.split(word) == tokenizer.encode(f" {word}").ids, word
    assert len(pieces.split("banana")) < 4  # so that something was joined


def test_the_piece_that_was_learned_first_is_joined_first() -> None:
    pieces = Pieces(100)
    pieces.set({**EVERY, "ab": 70, "bc": 69, " a": 71, "abc": 72})
    assert pieces.split("abc") == [71, 69]
    pieces.set({**EVERY, "ab": 69, "bc": 70, " a": 71, "abc": 72})
    assert pieces.split("abc") == [EVERY[" "], 72]  # the longest match would be " a"


def test_pieces_are_state(tokenizer: Tokenizer) -> None:
    pieces, other = spelling(tokenizer), Pieces(tokenizer.get_vocab_size())
    assert other.split("banana") == []
    other.load_state_dict(pieces.state_dict())
    assert other.split("banana") == pieces.split("banana")
    emptied = Pieces(tokenizer.get_vocab_size())
    other.load_state_dict(emptied.state_dict())  # what was known before is forgotten
    assert other.split("banana") == []


def test_what_is_in_no_word_is_left_out() -> None:
    pieces = Pieces(200)
    known = {**EVERY, "a b": 70, "é": 71, "a.": 72, "abcdefghi": 73, "  ": 74, "": 75, " ab": 76}
    pieces.set(known)
    assert [int(token) for token in pieces.spelled.nonzero()] == [*range(63), 76]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ({**EVERY, "ab": 200}, "numbered below 100"),
        ({k: v for k, v in EVERY.items() if k not in " 7"}, r"without \[' ', '7'\]"),
    ],
)
def test_pieces_that_do_not_fit(pieces: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pieces(100).set(pieces)


def reader() -> Reader:
    torch.manual_seed(0)
    made = Reader(channels=6, width=8, heads=2)
    for module in made.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            assert module.running_mean is not None
            module.running_mean.normal_()
    return made.eval()


@torch.no_grad()
def test_each_head_looks_at_the_rows_of_a_column_on_its_own() -> None:
    made = reader()
    fine = torch.randn(2, 6, 12, 5)
    seen = made.body(made.norm(fine))
    assert seen.shape == (2, 8, 3, 5)  # a quarter of the rows, all of the columns
    columns = torch.zeros(2, 8, 5)
    for head in range(2):
        scores = (seen * made.rows.weight[head]).sum(dim=1) + made.rows.bias[head]
        own = slice(4 * head, 4 * head + 4)
        columns[:, own] = torch.einsum("bhw,bchw->bcw", scores.softmax(dim=1), seen[:, own])
    columns = made.along(columns)
    logits, text = made(fine)
    expected = columns.transpose(1, 2) @ made.letters.weight.T + made.letters.bias
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(text, columns.amax(dim=2) @ made.text.weight[0] + made.text.bias[0])


@torch.no_grad()
def test_images_of_a_batch_do_not_mix_and_half_precision_reads_the_same() -> None:
    made = reader()
    fine = torch.randn(4, 6, 16, 16)
    logits, text = made(fine)
    alone = torch.cat([made(fine[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(alone, logits, atol=1e-5, rtol=0)
    assert torch.equal(made(fine)[0], logits)
    half, half_text = made.to(torch.bfloat16)(fine.to(torch.bfloat16))
    torch.testing.assert_close(half.float(), logits, atol=0.1, rtol=0.05)
    torch.testing.assert_close(half_text.float(), text, atol=0.1, rtol=0.05)


def test_it_learns_which_letter_is_where() -> None:
    """Marks of two channels in any row: their order is what is read."""
    torch.manual_seed(0)
    made = Reader(channels=2, width=8, heads=2).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-2)
    draw = torch.Generator().manual_seed(0)

    def drawn() -> tuple[torch.Tensor, list[str]]:
        maps, words = torch.zeros(16, 2, 8, 9), []
        for i in range(16):
            marks = torch.randint(2, (2,), generator=draw).tolist()
            row = int(torch.randint(8, (1,), generator=draw))
            for column, mark in zip((2, 6), marks, strict=True):
                maps[i, mark, row, column] = 3.0
            words.append("".join(string.ascii_lowercase[mark] for mark in marks))
        return maps, words

    for _ in range(120):
        maps, words = drawn()
        targets = torch.tensor([[ALPHABET.index(c) + 1 for c in word] for word in words])
        likely = made(maps)[0].log_softmax(dim=-1).transpose(0, 1)
        loss = F.ctc_loss(likely, targets, torch.full((16,), 9), torch.full((16,), 2))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    maps, words = drawn()
    letters, _ = made.eval().read(maps)
    assert as_text(letters) == words


def test_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="reader is 6: expected a multiple of 4"):
        Reader(channels=3, width=6)
