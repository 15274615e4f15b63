# Shell loops: arithmetic, words, functions, patterns; no process but the shell.
collatz() {
    n=$1
    steps=0
    while [ "$n" -ne 1 ]; do
        if [ $((n % 2)) -eq 0 ]; then n=$((n / 2)); else n=$((3 * n + 1)); fi
        steps=$((steps + 1))
    done
}
i=1
sum=0
while [ $i -le 200 ]; do
    collatz $i
    sum=$((sum + steps))
    case "$i-$steps" in
    *7-*) word="$word${#word}" ;;
    1*) word=${word%?} ;;
    esac
    i=$((i + 1))
done
for word in $(seq 1 3000); do
    set -- $word $sum
    sum=$(((sum * 31 + $1) % 1000003))
done
echo "$sum"
