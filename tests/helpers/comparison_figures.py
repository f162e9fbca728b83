"""The paper's comparison of systems, typed in a second time from its table 8."""

# By depth: system, top-1 in percent, GMACs, M parameters.
TABLE = {
    "18": """
        ResNet 69.8 1.814 11.7
        SE-ResNet 70.6 1.814 11.8
        CBAM-ResNet 70.7 1.815 11.8
        LR-Net 74.6 2.5 14.4
        VT-ResNet 76.8 1.569 11.7
    """,
    "34": """
        ResNet 73.3 3.664 21.8
        SE-ResNet 73.9 3.664 22.0
        CBAM-ResNet 74.0 3.664 22.0
        AA-ResNet 74.7 3.55 20.7
        VT-ResNet 79.9 3.236 19.2
    """,
    "50": """
        ResNet 76.0 4.089 25.5
        SE-ResNet 76.9 3.860 28.1
        CBAM-ResNet 77.3 3.864 28.1
        LR-Net 77.3 4.3 23.3
        Stand-Alone 77.6 3.6 18.0
        AA-ResNet 77.7 4.1 25.6
        GloRe-ResNet 78.4 5.2 30.5
        VT-ResNet 80.6 3.412 21.4
    """,
    "101": """
        ResNet 77.4 7.802 44.4
        SE-ResNet 77.7 7.575 49.3
        CBAM-ResNet 78.5 7.581 49.3
        LR-Net 78.5 7.79 42.0
        AA-ResNet 78.7 8.05 45.4
        VT-ResNet 82.3 7.129 41.5
    """,
}
PRINTED = {
    f"{words[0]}-{depth}": tuple(words[1:])
    for depth, lines in TABLE.items()
    for words in map(str.split, lines.strip().splitlines())
} | {"SAN19 patchwise": ("78.2", "3.3", "20.5")}
# M parameters that the architectures have, as described.
GATED = {18: 11.78, 34: 21.96, 50: 28.09, 101: 49.33}
DESCRIBED = {
    **{f"SE-ResNet-{d}": n for d, n in GATED.items()},
    **{f"CBAM-ResNet-{d}": n for d, n in GATED.items()},
    **{f"AA-ResNet-{d}": n for d, n in ((34, 20.75), (50, 25.81), (101, 45.39))},
    **{f"LR-Net-{d}": n for d, n in ((26, 14.6), (50, 23.4), (101, 40.8))},
    **{f"Stand-Alone-{d}": n for d, n in ((26, 10.34), (38, 14.19), (50, 18.04))},
    **{f"SAN{d} pairwise": n for d, n in ((10, 10.53), (15, 14.07), (19, 17.60))},
    **{f"SAN{d} patchwise": n for d, n in ((10, 11.84), (15, 16.18), (19, 20.52))},
}
# What is counted beside the paper's table: top-1, GMACs, M parameters of their own
# papers, where those say so.
BESIDE = {
    "LR-Net-26": ("75.7", "2.6", "14.7"),
    "Stand-Alone-26": (None, "2.35", "10.3"),
    "Stand-Alone-38": (None, "3.0", "14.1"),
    "SAN10 pairwise": ("74.9", "2.2", "10.5"),
    "SAN15 pairwise": ("76.6", "3.0", "14.1"),
    "SAN19 pairwise": ("76.9", "3.8", "17.6"),
    "SAN10 patchwise": ("77.1", "1.9", "11.8"),
    "SAN15 patchwise": ("78.0", "2.6", "16.2"),
}
