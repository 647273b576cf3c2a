"""The public datasets: the counts that every copy must show, and where each comes from."""
from dataclasses import replace

from sbr_core import readers
from sbr_core.protocols import DAY, PROTOCOLS

# Counts that every copy of the data agrees on (item numbers and the order of ties differ between copies). Mean lengths
# are of examples, input and label, to three decimals.
EXPECTED = {
    "diginetica": {
        "train_sessions": 186_670, "train_clicks": 906_140, "train_examples": 719_470, "items": 43_097,
        "items_in_train": 43_097, "test_sessions": 15_963, "test_clicks": 76_821, "test_examples": 60_858,
        "items_in_test": 21_131, "test_items_unknown": 0, "test_targets_unknown": 0,
        "longest_input_train": 69, "longest_input_test": 40, "items_as_input": 42_973, "items_as_label": 43_066,
        "mean_length_train": 5.133, "mean_length_test": 5.035, "mean_length": 5.125,
    },
    "diginetica_dgtn": {
        "train_sessions": 186_670, "train_clicks": 906_140, "train_examples": 719_470, "items": 43_097,
        "test_sessions": 18_101, "test_clicks": 87_078, "test_examples": 68_977, "test_items_unknown": 0,
        "test_targets_unknown": 0, "mean_length_train": 5.133, "mean_length_test": 5.042,
    },
    "diginetica_lessr": {
        "items": 42_596, "test_sessions": 15_955, "test_clicks": 76_149, "test_examples": 60_194,
        "test_items_unknown": 0, "test_targets_unknown": 0,
    },
    "yoochoose1_64": {
        "train_sessions": 116_167, "train_clicks": 486_026, "train_examples": 369_859, "items": 37_483,
        "items_in_train": 17_376, "test_sessions": 15_324, "test_clicks": 71_222, "test_examples": 55_898,
        "items_in_test": 6_751, "test_items_unknown": 369, "test_targets_unknown": 412,
        "longest_input_train": 145, "longest_input_test": 73, "items_as_input": 16_373, "items_as_label": 16_422,
        "mean_length_train": 6.115, "mean_length_test": 6.445, "mean_length": 6.158,
    },
    "yoochoose1_64_dgtn": {
        "train_sessions": 119_287, "train_clicks": 494_330, "train_examples": 375_043, "items": 17_319,
        "items_in_train": 17_319,
        "test_sessions": 15_228, "test_clicks": 70_633, "test_examples": 55_405,
        "test_items_unknown": 0, "test_targets_unknown": 0, "mean_length_train": 6.024, "mean_length_test": 6.390,
    },
}
EXPECTED["yoochoose1_4"] = {"train_examples": 5_917_745} | {
    figure: EXPECTED["yoochoose1_64"][figure] for figure in ("items", "test_sessions", "test_clicks", "test_examples")}
# Figures of a fraction of a raw log that depend on how ties of date are broken (copies agree where files are the same).
TIES = ("train_sessions", "train_clicks", "items_in_train", "test_items_unknown", "test_targets_unknown",
        "longest_input_train", "items_as_input", "items_as_label", "mean_length_train", "mean_length")
FINGERPRINTS = {  # of the data that the book's records ran on
    "demo": "cf2ba20e3ea43a0d39e1dc9c711c2445ccd54eee8188180af7dc44f87386aa2b",
    "diginetica": "f098938b5afbd01ebbbcfeca19bea18ef2b0c217e981b17b619b3a1e09b4df87",
    "yoochoose1_64": "3be2b41f2a8f25c9dfe3472a464e8335f4a07fd3d838461298acdf56710c38da",
    "yoochoose1_64_dgtn": "415c9d0c6bb4bb72a396ea3ee337cfbe52fb6f9e97f7ade50c2e0a9e9ff08fe3",
}
VOCABULARY = {"yoochoose1_64": 37_483, "yoochoose1_4": 37_483}  # what the public code ranks: the full log's items
TRAIN_FILES = ("all_train_seq.txt", "unaug_train.txt", "train.txt")

YOOCHOOSE = replace(PROTOCOLS["srgnn"], order="file", test_seconds=DAY)
YOOCHOOSE_DGTN = replace(PROTOCOLS["dgtn"], test_seconds=DAY, fraction=64)
CHALLENGE = "yoochoose-clicks.dat, the click log of RecSys Challenge 2015 (from its organisers, under their licence)"
CUP = "train-item-views.csv, from the CIKM Cup 2016 Track 2 data (after signing in to the competition's page)"
MELI = "train_dataset.jl.gz, from the MeLi Data Challenge 2020 (after signing in to the competition's page)"
RAW = {  # name: (reader, protocol, where its file comes from); the file's name is the first word
    "diginetica": (readers.read_diginetica, PROTOCOLS["srgnn"], CUP),
    "diginetica_dgtn": (readers.read_diginetica, PROTOCOLS["dgtn"], CUP),
    "diginetica_lessr": (readers.read_diginetica, PROTOCOLS["lessr"], CUP),
    "yoochoose1_64": (readers.read_yoochoose, replace(YOOCHOOSE, fraction=64), CHALLENGE),
    "yoochoose1_4": (readers.read_yoochoose, replace(YOOCHOOSE, fraction=4), CHALLENGE),
    "yoochoose1_64_dgtn": (readers.read_yoochoose, YOOCHOOSE_DGTN, CHALLENGE),
    "meli2020": (readers.read_meli, PROTOCOLS["scalable"], MELI),
}
MTD = "https://raw.githubusercontent.com/chenjh1988/MTD/"
DGTN = "https://raw.githubusercontent.com/kunwuz/DGTN/eeaccceae7c312ec3b9e1b64e9636a164dcf4979/"
URLS = {  # prepared copies in public repositories, each at a fixed commit
    "diginetica": {
        "all_train_seq.txt": MTD + "eb340f330f1f773fd7664a7a48770cf3a5981f97/datasets/diginetica/all_train_seq.txt",
        "test.txt": MTD + "eb340f330f1f773fd7664a7a48770cf3a5981f97/datasets/diginetica/test.txt",
    },
    "yoochoose1_64": {
        "all_train_seq.txt": MTD + "eb340f330f1f773fd7664a7a48770cf3a5981f97/yoochoose1_64/all_train_seq.txt",
        "test.txt": MTD + "dee8ded67f8fe90fda8ecccefec6743ed9fb731c/datasets/yoochoose1_64/test.txt",
    },
    "yoochoose1_64_dgtn": {
        "unaug_train.txt": DGTN + "neigh_retrieval/unaugment_data/yoochoose1_64/unaug_train.txt",
        "test.txt": DGTN + "datasets/yoochoose1_64/raw/test.txt",
    },
}
