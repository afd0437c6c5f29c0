/* Copy rows of `bytes` bytes each from any addresses in memory to `out`, one after the other.
 *
 * Rows spread over half a gigabyte are not in the cache. So the next rows are fetched while this one is copied.
 */
#include <stdint.h>
#include <string.h>

#define AHEAD 4
#define LINE 64

#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address)
#else
#define FETCH(address) (void)(address)
#endif

void soe_gather(char *restrict out, const int64_t *addresses, int64_t count, int64_t bytes)
{
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count) {
            const char *next = (const char *)(intptr_t)addresses[i + AHEAD];
            for (int64_t at = 0; at < bytes; at += LINE)
                FETCH(next + at);
        }
        memcpy(out + i * bytes, (const char *)(intptr_t)addresses[i], bytes);
    }
}
