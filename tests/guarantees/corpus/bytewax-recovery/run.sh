python -m bytewax.recovery /var/lib/wax/recovery 4
python -m bytewax.run flow -r /var/lib/wax/recovery -s 30 -b 0
