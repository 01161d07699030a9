"""The optimal assignment of rows to columns by their scores, in NumPy alone."""

import numpy as np

__all__ = ["assign", "components_of"]


def assign(scores: np.ndarray, possible: np.ndarray, minimum: float) -> dict[int, int]:
    """Return the assignment of rows to columns with the largest sum of scores; what has no good partner is left out.

    Args:
        scores: rows × columns.
        possible: rows × columns, whether a pair may be assigned.
        minimum: score under which a pair is not assigned.
    """
    found: dict[int, int] = {}
    possible = possible & (scores > minimum)
    for rows, columns in components_of(possible):
        block = np.where(possible[np.ix_(rows, columns)], scores[np.ix_(rows, columns)] - minimum, 0.0)
        # A column of its own for each row is no partner, at a score of zero.
        padded = np.concatenate([block, np.zeros((len(rows), len(rows)))], 1)
        for row, column in enumerate(_hungarian(-padded)):
            if column < len(columns) and possible[rows[row], columns[column]]:
                found[int(rows[row])] = int(columns[column])
    return found


def components_of(possible: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows and columns of each connected part of a graph."""
    left: np.ndarray = np.asarray(possible.any(1))
    parts = []
    while left.any():
        rows = np.zeros(len(left), bool)
        rows[np.argmax(left)] = True
        while True:
            columns = possible[rows].any(0)
            more = np.asarray(possible[:, columns].any(1))
            if (more == rows).all():
                break
            rows = more
        parts.append((np.flatnonzero(rows), np.flatnonzero(columns)))
        left = np.logical_and(left, np.logical_not(rows))
    return parts


def _hungarian(cost: np.ndarray) -> list[int]:
    """Return the column of each row with the smallest sum of costs, by shortest augmenting paths.

    Args:
        cost: rows × columns, no fewer columns than rows.
    """
    n, m = cost.shape
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    row_of, before = np.zeros(m + 1, int), np.zeros(m + 1, int)
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        shortest, used = np.full(m + 1, np.inf), np.zeros(m + 1, bool)
        while row_of[column]:
            used[column] = True
            reduced = cost[row_of[column] - 1] - u[row_of[column]] - v[1:]
            closer = ~used[1:] & (reduced < shortest[1:])
            shortest[1:][closer], before[1:][closer] = reduced[closer], column
            best = int(np.argmin(np.where(used, np.inf, shortest)))
            delta = shortest[best]
            u[row_of[used]] += delta
            v[used] -= delta
            shortest[~used] -= delta
            column = best
        while column:
            row_of[column] = row_of[before[column]]
            column = before[column]
    columns = [0] * n
    for column in range(1, m + 1):
        if row_of[column]:
            columns[row_of[column] - 1] = column - 1
    return columns
